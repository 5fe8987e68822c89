//! Applications: namespaces such as `ix-sab`, whose main Service answers for the application's name.

use std::sync::Arc;

use super::facts::ServiceFact;
use super::names::ServiceName;
use super::service::Service;
use super::visibility::Visibility;

/// Maximum number of Services of an application among which its main one is looked for: those with a reason first.
const MAX_CANDIDATES: usize = 256;

/// A candidate for the main Service of an application, with the criteria for the choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The Service.
    pub name: Arc<ServiceName>,
    /// The callers that may see it; `None` for everyone.
    pub visibility: Option<Arc<Visibility>>,
    /// Whether its name is the full name derived from its Kubernetes labels.
    pub full_name: bool,
    /// Whether its name is the application's name.
    pub app_name: bool,
    /// Whether it has the Kubernetes label `service.name: main`.
    pub main: bool,
}

impl Candidate {
    /// Keeps the candidates that matter: an application has a few Services, and a query looks at each of them.
    pub(super) fn chosen(mut candidates: Vec<Candidate>) -> Box<[Candidate]> {
        candidates.sort_by_key(|candidate| !(candidate.full_name || candidate.app_name || candidate.main));
        candidates.truncate(MAX_CANDIDATES);
        candidates.into()
    }

    /// Evaluates a Service of application `app`.
    pub(super) fn new(app: &str, name: &str, fact: &ServiceFact, built: &Service) -> Candidate {
        let release = fact.release.as_deref().unwrap_or(app);
        Candidate {
            name: built.name.clone(),
            visibility: built.visibility.clone(),
            full_name: fact.chart.as_ref().is_some_and(|chart| full_name(release, chart) == name),
            app_name: name == app,
            main: fact.main,
        }
    }
}

/// Computes the `fullname` template of Helm charts: at most 63 characters, without one trailing dash. The release name
/// is used alone if it contains the chart name.
pub fn full_name(release: &str, chart: &str) -> String {
    let trim = |text: &str| {
        let cut: String = text.chars().take(63).collect();
        cut.strip_suffix('-').unwrap_or(&cut).to_owned()
    };
    let chart = trim(&chart.to_lowercase());
    let name = if release.contains(&chart) { release.to_owned() } else { format!("{release}-{chart}") };
    trim(&name.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chart_full_names_follow_the_helm_template() {
        for (release, chart, expected) in [
            ("sabnzbd", "sabnzbd", "sabnzbd"),
            ("sab", "sabnzbd", "sab-sabnzbd"),
            ("sabnzbd-23", "sabnzbd", "sabnzbd-23"),
            ("my", "Home-Assistant", "my-home-assistant"),
            ("app", "x-", "app-x"),
        ] {
            assert_eq!(full_name(release, chart), expected);
        }
        assert_eq!(full_name(&"a".repeat(62), "-b").len(), 62, "cut to 63, then one dash removed");
    }
}
