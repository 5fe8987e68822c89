//! Environment variables that describe how one Service reaches another.

use thiserror::Error;

use super::{Catalog, key_of};
use crate::zone::facts::{Key, PortFact, Protocol, ServiceFact, ServiceType};

/// Names and contents of the variables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    /// API_URL, API_HOST, API_PORT and API_SCHEME, with full names
    #[default]
    Plain,
    /// API_URL only, as injected by `links` in convox.yml
    Convox,
    /// As plain, but with short names as hosts: api, scheduler.backoffice-workers
    Cloud66,
    /// API_PORT=tcp://…, API_PORT_3000_TCP_ADDR and so on, as injected by Docker and Compose links
    Compose,
    /// API_SERVICE_HOST, API_SERVICE_PORT and so on, as injected by the kubelet
    Kubernetes,
}

/// Reasons why variables cannot be created.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LinkError {
    /// The linking Service does not exist, or the name is ambiguous.
    #[error("there is no Service {0}; `callsign services -A` lists them all")]
    NoService(String),
    /// The Service has no links.
    #[error("{0} has no links; annotate it with callsign.dev/links, or use --link")]
    NoLinks(String),
    /// The target of a link does not exist, or is not visible.
    #[error("{from} links to service: {to} which does not exist")]
    Missing {
        /// The linking Service.
        from: String,
        /// The link as written.
        to: String,
    },
    /// The target of a link has no ports.
    #[error("{from} links to service: {to} which does not expose any ports{}", given_port(*is_external))]
    NoPorts {
        /// The linking Service.
        from: String,
        /// The link as written.
        to: String,
        /// Whether the target is an ExternalName, which a link can give a port.
        is_external: bool,
    },
    /// The target of a link does not have the port that the link names.
    #[error("{from} links to service: {to} which does not have port {port}; it has {has}")]
    NoSuchPort {
        /// The linking Service.
        from: String,
        /// The name of the target.
        to: String,
        /// The port, as written.
        port: String,
        /// The ports of the target.
        has: String,
    },
    /// Two links would set the same variables.
    #[error("{from} links to {first} and {second}, which would both set {variable} variables; link to one by an alias")]
    Conflict {
        /// The linking Service.
        from: String,
        /// One link.
        first: String,
        /// The other link.
        second: String,
        /// The name that both links map to.
        variable: String,
    },
}

fn given_port(is_external: bool) -> &'static str {
    if is_external { "; link to NAME:PORT" } else { "" }
}

/// Splits the value of `callsign.dev/links` into links.
pub fn written(text: &str) -> Vec<String> {
    let parts = text.split(|c: char| matches!(c, ',' | ';') || c.is_whitespace());
    parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// A resolved link.
struct Link<'c> {
    variable: String,
    host: String,
    /// The shortest name within the namespace of the linking Service.
    short: String,
    key: Key,
    fact: &'c ServiceFact,
    /// The ports, that of the link first.
    ports: Vec<PortFact>,
}

impl Catalog {
    /// Finds the Service named by `[NS/]SERVICE`. Without `NS` and `namespace`, the name must be unique in the cluster.
    pub fn find(&self, text: &str, namespace: Option<&str>) -> Result<Key, LinkError> {
        let missing = || LinkError::NoService(text.to_owned());
        let known = |namespace: &str, name: &str| {
            self.services.get_key_value(&Key::new(namespace, name)).map(|(key, _)| key.clone())
        };
        if let Some((namespace, name)) = text.split_once('/') {
            return known(namespace, name).ok_or_else(missing);
        }
        if let Some(namespace) = namespace {
            return known(namespace, text).ok_or_else(|| LinkError::NoService(format!("{namespace}/{text}")));
        }
        let mut named = self.services.keys().filter(|key| *key.name == *text);
        match (named.next(), named.next()) {
            (Some(only), None) => Ok(only.clone()),
            (Some(first), Some(second)) => Err(LinkError::NoService(format!(
                "uniquely named {text}: {first} and {second} exist, so add a namespace"
            ))),
            _ => Err(missing()),
        }
    }

    /// Returns the links of a Service, as written in its annotation.
    pub fn links_of(&self, key: &Key) -> Vec<String> {
        let links = self.services.get(key).and_then(|known| known.fact.links.as_deref());
        links.map(written).unwrap_or_default()
    }

    /// Returns the variables for the links of a Service, in the order of the links, or all errors. A link is a name, or
    /// `NAME:PORT`. With a scheme, it applies to all links.
    pub fn variables(
        &self,
        from: &Key,
        links: &[String],
        style: Style,
        scheme: Option<&str>,
    ) -> Result<Vec<(String, String)>, Vec<LinkError>> {
        let mut wrong = Vec::new();
        let mut resolved: Vec<(Link<'_>, &str)> = Vec::new();
        if links.is_empty() {
            wrong.push(LinkError::NoLinks(from.name.to_string()));
        }
        for text in links {
            let link = match self.link(from, text) {
                Ok(link) => link,
                Err(error) => {
                    wrong.push(error);
                    continue;
                }
            };
            // Two spellings of the same Service count as one link.
            match resolved.iter().find(|other| other.0.variable == link.variable) {
                Some((other, _)) if other.key == link.key => continue,
                Some((_, first)) => wrong.push(LinkError::Conflict {
                    from: from.name.to_string(),
                    first: (*first).to_owned(),
                    second: text.clone(),
                    variable: link.variable.clone(),
                }),
                None => {}
            }
            resolved.push((link, text));
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(resolved.iter().flat_map(|(link, _)| link.variables(style, scheme)).collect())
    }

    fn link(&self, from: &Key, text: &str) -> Result<Link<'_>, LinkError> {
        let missing = || LinkError::Missing { from: from.name.to_string(), to: text.to_owned() };
        // A URL is taken for what it means.
        let text = text.split_once("://").map_or(text, |(_, rest)| rest.split('/').next().unwrap_or(rest));
        let (text, port) = text.rsplit_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
        let namespace = self.zone.settings.namespace_name(&from.namespace).map_err(|_| missing())?;
        let service = self.resolved(text, &namespace).ok_or_else(missing)?;
        let key = key_of(service);
        let fact = &*self.services.get(&key).ok_or_else(missing)?.fact;
        let mut ports = fact.ports.clone();
        let is_external = matches!(fact.service_type, ServiceType::External(_));
        match (port, port.and_then(|port| port.parse().ok())) {
            (None, _) => {}
            // An ExternalName seldom lists its ports.
            (Some(_), Some(number)) if is_external && ports.iter().all(|port| port.number != number) => {
                let name = Box::default();
                ports = vec![PortFact { name, protocol: Protocol::Tcp, number, target: None, app_protocol: None }];
            }
            (Some(port), number) => {
                let wanted = |fact: &PortFact| Some(fact.number) == number || *fact.name == *port;
                let Some(at) = ports.iter().position(wanted) else {
                    let (from, to, port) = (from.name.to_string(), text.to_owned(), port.to_owned());
                    return Err(LinkError::NoSuchPort { from, to, port, has: listed(&ports) });
                };
                ports.swap(0, at);
            }
        }
        if ports.is_empty() {
            return Err(LinkError::NoPorts { from: from.name.to_string(), to: text.to_owned(), is_external });
        }
        let host = self.domain(&key);
        // Variables are named after the first label: `scheduler.backoffice-workers` becomes SCHEDULER.
        let first = text.split('.').next().unwrap_or(text);
        let short = if key.namespace == from.namespace {
            key.name.to_string()
        } else {
            format!("{}.{}", key.name, key.namespace)
        };
        Ok(Link { variable: variable(first), host, short, key, fact, ports })
    }
}

/// Lists ports for messages: `80 (http), 443 (https)`.
pub(super) fn listed(ports: &[PortFact]) -> String {
    let texts = ports.iter().map(|port| match &*port.name {
        "" => port.number.to_string(),
        name => format!("{} ({name})", port.number),
    });
    let texts: Vec<String> = texts.collect();
    if texts.is_empty() { "no ports".to_owned() } else { texts.join(", ") }
}

/// Converts a name to the name of a shell variable.
fn variable(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    // The name of a shell variable cannot begin with a digit.
    let digit = text.starts_with(|c: char| c.is_ascii_digit());
    digit.then_some('_').into_iter().chain(plain).collect()
}

/// Schemes with their default ports. A port name or number can imply a scheme.
const SCHEMES: &[(&str, u16)] = &[
    ("http", 80),
    ("https", 443),
    ("ws", 80),
    ("wss", 443),
    ("mysql", 3306),
    ("postgres", 5432),
    ("postgresql", 5432),
    ("redis", 6379),
    ("mongodb", 27017),
    ("amqp", 5672),
    ("memcached", 11211),
    ("ftp", 21),
    ("ssh", 22),
    ("smtp", 25),
    ("ldap", 389),
    ("ldaps", 636),
    ("mqtt", 1883),
    ("nats", 4222),
];

/// Ports on which web servers listen by convention, beside 80 and 443. None belongs to a scheme of its own.
const WEB: [u16; 6] = [3000, 5000, 8000, 8008, 8080, 8888];

/// Schemes that a port name can imply, without a default port.
const PLAIN: &[&str] = &["grpc", "tcp", "udp", "sctp"];

/// Returns the scheme of a port, taken from its `appProtocol`, else from the prefix of its name, else from its number.
fn scheme(port: &PortFact) -> String {
    scheme_of(port).to_ascii_lowercase()
}

fn scheme_of(port: &PortFact) -> &str {
    let known = |text: &str| {
        let found = SCHEMES.iter().map(|(scheme, _)| *scheme).chain(PLAIN.iter().copied());
        found.into_iter().find(|scheme| *scheme == text)
    };
    if let Some(protocol) = port.app_protocol.as_deref() {
        // `kubernetes.io/h2c`, `kubernetes.io/ws` (KEP-3726) and names of the IANA registry, in any case.
        let (domain, bare) = protocol.rsplit_once('/').unwrap_or(("", protocol));
        match bare {
            "h2c" => return "http",
            _ if domain.is_empty() || known(bare).is_some() => return bare,
            _ => {}
        }
    }
    // Names such as `http-admin` and `mysql-metrics` begin with the protocol.
    let named = port.name.split('-').next().and_then(known);
    let of_database = |name: &str| match name {
        "mariadb" | "percona" => Some("mysql"),
        "mongo" => Some("mongodb"),
        "rabbitmq" => Some("amqp"),
        _ => None,
    };
    let named = named.or_else(|| of_database(port.name.split('-').next().unwrap_or("")));
    let udp = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    if let Some(named) = named.filter(|named| *named != "tcp") {
        return named;
    }
    if named.is_some() || port.protocol != Protocol::Tcp {
        return udp;
    }
    // Charts call the port of a user interface so.
    let is_web = matches!(&*port.name, "web" | "main" | "ui");
    match port.number {
        443 | 8443 => "https",
        80 => "http",
        number if is_web || WEB.contains(&number) => "http",
        number => {
            let database = SCHEMES.iter().skip(4).take(7).find(|(_, of)| *of == number);
            database.map_or(udp, |(scheme, _)| scheme)
        }
    }
}

impl Link<'_> {
    /// Returns the port that clients connect to. Clients of a headless Service connect directly to the pods, so they
    /// use the container's port.
    fn number(&self, port: &PortFact) -> u16 {
        match (&self.fact.service_type, port.target.as_deref().and_then(|target| target.parse().ok())) {
            (ServiceType::Headless, Some(target)) => target,
            _ => port.number,
        }
    }

    fn variables(&self, style: Style, given: Option<&str>) -> Vec<(String, String)> {
        let Some(port) = self.ports.first() else { return Vec::new() };
        let (scheme, number) = (given.map_or_else(|| scheme(port), str::to_owned), self.number(port));
        let name = &self.variable;
        let host = if style == Style::Cloud66 { &self.short } else { &self.host };
        let default = SCHEMES.iter().any(|(known, port)| *known == scheme && *port == number);
        let url = if default { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{number}") };
        let one = |suffix: &str, value: String| (format!("{name}{suffix}"), value);
        match style {
            Style::Convox => vec![one("_URL", url)],
            Style::Plain | Style::Cloud66 => vec![
                one("_URL", url),
                one("_HOST", host.clone()),
                one("_PORT", number.to_string()),
                one("_SCHEME", scheme),
            ],
            Style::Compose => {
                let mut all = vec![one("_NAME", format!("/{}/{}", self.key.namespace, self.key.name))];
                all.extend(self.docker(host));
                all
            }
            Style::Kubernetes => {
                let address = match &self.fact.service_type {
                    ServiceType::Cluster(addresses) => addresses.first().map(ToString::to_string),
                    _ => None,
                };
                let host = &address.unwrap_or_else(|| host.clone());
                let mut all = vec![one("_SERVICE_HOST", host.clone()), one("_SERVICE_PORT", number.to_string())];
                let named = self.ports.iter().filter(|port| !port.name.is_empty());
                all.extend(named.map(|port| {
                    one(&format!("_SERVICE_PORT_{}", variable(&port.name)), self.number(port).to_string())
                }));
                all.extend(self.docker(host));
                all
            }
        }
    }

    /// Returns Docker's variables: `API_PORT=tcp://host:3000`, and the URL and its parts for each port.
    fn docker(&self, host: &str) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for (index, port) in self.ports.iter().enumerate() {
            let (number, upper) = (self.number(port), port.protocol.as_str());
            let protocol = upper.to_ascii_lowercase();
            // RFC 3986 section 3.2.2: IPv6 addresses are enclosed in brackets.
            let authority = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            let url = format!("{protocol}://{authority}:{number}");
            let name = format!("{}_PORT", self.variable);
            if index == 0 {
                all.push((name.clone(), url.clone()));
            }
            let each = format!("{name}_{number}_{upper}");
            all.push((each.clone(), url));
            all.push((format!("{each}_PROTO"), protocol));
            all.push((format!("{each}_PORT"), number.to_string()));
            all.push((format!("{each}_ADDR"), host.to_owned()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, protocol: Protocol, number: u16, app_protocol: Option<&str>) -> PortFact {
        PortFact { name: name.into(), protocol, number, target: None, app_protocol: app_protocol.map(Into::into) }
    }

    #[test]
    fn scheme_follows_app_protocol_then_name_then_number() {
        let tcp = Protocol::Tcp;
        for (case, port, expected) in [
            ("appProtocol takes precedence", port("http", tcp, 80, Some("grpc")), "grpc"),
            ("a Kubernetes appProtocol", port("", tcp, 8080, Some("kubernetes.io/h2c")), "http"),
            ("web sockets", port("", tcp, 8080, Some("kubernetes.io/ws")), "ws"),
            ("a vendor's appProtocol is ignored", port("http", tcp, 8080, Some("example.com/x")), "http"),
            ("the name", port("https", tcp, 8443, None), "https"),
            ("the prefix of the name", port("http-admin", tcp, 9000, None), "http"),
            ("the name of a database", port("mariadb", tcp, 3307, None), "mysql"),
            ("port 80", port("", tcp, 80, None), "http"),
            ("port 443", port("web", tcp, 443, None), "https"),
            ("the port of a database", port("", tcp, 5432, None), "postgres"),
            ("a name of tcp overrides the number", port("tcp", tcp, 80, None), "tcp"),
            ("the user interface of a chart", port("main", tcp, 9091, None), "http"),
            ("a port of web servers", port("", tcp, 3000, None), "http"),
            ("a port of web servers with TLS", port("", tcp, 8443, None), "https"),
            ("an unknown name and number", port("metrics", tcp, 9000, None), "tcp"),
            ("upper case", port("", tcp, 443, Some("HTTPS")), "https"),
            ("UDP", port("dns", Protocol::Udp, 53, None), "udp"),
            ("port 22 does not imply a scheme", port("", tcp, 22, None), "tcp"),
        ] {
            assert_eq!(scheme(&port), expected, "{case}");
        }
    }

    #[test]
    fn links_and_variable_names_are_parsed() {
        assert_eq!(variable("9web"), "_9WEB");
        assert_eq!(written(" api, mysql.backoffice\n\tredis,"), ["api", "mysql.backoffice", "redis"]);
        assert_eq!(variable("mysql-default"), "MYSQL_DEFAULT");
    }
}
