//! `metadata` of any object.

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

/// `metadata` of any object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    /// Opaque; used by the watch and the self-check.
    pub resource_version: Option<String>,
    pub(super) creation_timestamp: Option<String>,
    pub(super) deletion_timestamp: Option<String>,
    pub(super) labels: Option<Labels>,
    pub(super) annotations: Option<Annotations>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Labels {
    #[serde(rename = "kubernetes.io/service-name")]
    pub(super) service_name: Option<Text>,
    #[serde(rename = "app.kubernetes.io/instance")]
    pub(super) instance: Option<Text>,
    #[serde(rename = "app.kubernetes.io/name")]
    pub(super) chart: Option<Text>,
    #[serde(rename = "service.name")]
    pub(super) main: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Annotations {
    #[serde(rename = "callsign.dev/alias")]
    pub(super) alias: Option<Text>,
    #[serde(rename = "callsign.dev/default")]
    pub(super) default: Option<Text>,
    #[serde(rename = "callsign.dev/visible-to")]
    pub(super) visible_to: Option<Text>,
    #[serde(rename = "callsign.dev/links")]
    pub(super) links: Option<Text>,
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub(super) triggered: Option<Text>,
    #[serde(rename = "k8s.io/initial-events-end")]
    pub(super) initial_events_end: Option<Text>,
}

impl Meta {
    /// The name, unless it is missing or empty.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref().filter(|name| !name.is_empty())
    }

    /// The namespace; `default` if the object does not state one, as in kubectl.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
    }

    /// Whether the object is being deleted: it has a deletion timestamp.
    pub fn is_being_deleted(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// Whether this is the bookmark that ends a streamed list (Kubernetes API concepts, "Streaming lists").
    pub fn ends_initial_events(&self) -> bool {
        let annotations = self.annotations.as_ref();
        annotations.and_then(|annotations| annotations.initial_events_end.as_ref()).is_some_and(|end| end.0 == "true")
    }

    /// Time of the event that caused the last change: `endpoints.kubernetes.io/last-change-trigger-time`.
    pub fn triggered(&self) -> Option<jiff::Timestamp> {
        self.annotations.as_ref()?.triggered.as_ref()?.0.parse().ok()
    }

    /// `namespace/name` for messages.
    pub fn label(&self) -> String {
        match self.name() {
            Some(name) => format!("{}/{name}", self.namespace()),
            None => format!("{}/(no name)", self.namespace()),
        }
    }

    pub(super) fn created(&self) -> i64 {
        let time = self.creation_timestamp.as_ref().and_then(|time| time.parse::<jiff::Timestamp>().ok());
        time.map_or(0, |time| time.as_second())
    }
}

/// Text that is often left unquoted in YAML. Booleans and numbers, such as `true` and `80`, become text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Text(pub(super) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        struct TextVisitor;
        impl Visitor<'_> for TextVisitor {
            type Value = Text;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("text")
            }
            fn visit_str<E>(self, value: &str) -> Result<Text, E> {
                Ok(Text(value.to_owned()))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text(String::new()))
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}
