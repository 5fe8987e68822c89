//! Cases on which the specification is silent.

use super::Group;

pub const GROUPS: &[Group] = &[
    Group {
        title: "the domain itself and the names above Services",
        objects: "{kind: Service, metadata: {name: api, namespace: web}, spec: {clusterIP: 10.96.0.10}}",
        flags: &["--advertise", "10.96.0.53", "--advertise", "fd00::53"],
        cases: &[
            (
                "SOA",
                "cluster.local SOA",
                "NOERROR aa
                cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. SERIAL 7200 1800 86400 5",
            ),
            (
                "NS, with the addresses of --advertise",
                "cluster.local NS",
                "NOERROR aa
                cluster.local. 5 NS ns.dns.cluster.local.
                glue ns.dns.cluster.local. 5 A 10.96.0.53
                glue ns.dns.cluster.local. 5 AAAA fd00::53",
            ),
            ("A of the name server", "ns.dns.cluster.local A", "NOERROR aa\nns.dns.cluster.local. 5 A 10.96.0.53"),
            (
                "AAAA of the name server",
                "ns.dns.cluster.local AAAA",
                "NOERROR aa\nns.dns.cluster.local. 5 AAAA fd00::53",
            ),
            ("another type of the domain", "cluster.local TXT", "NOERROR aa\nsoa cluster.local."),
            ("svc", "svc.cluster.local A", "NOERROR aa\nsoa cluster.local."),
            ("pod", "pod.cluster.local A", "NOERROR aa\nsoa cluster.local."),
            ("dns", "dns.cluster.local NS", "NOERROR aa\nsoa cluster.local."),
            ("below dns", "x.dns.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("a namespace", "web.svc.cluster.local TXT", "NOERROR aa\nsoa cluster.local."),
            ("a namespace's pods", "web.pod.cluster.local A", "NOERROR aa\nsoa cluster.local."),
            ("a missing namespace", "nope.svc.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("below a missing namespace", "api.nope.svc.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("a missing Service", "nope.web.svc.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("neither svc nor pod", "api.web.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("six labels deep", "a.b.c.d.e.f.svc.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("an asterisk is an ordinary label", "*.web.svc.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            (
                "ANY of a Service: one rrset (RFC 8482)",
                "api.web.svc.cluster.local ANY",
                "NOERROR aa
                api.web.svc.cluster.local. 5 A 10.96.0.10",
            ),
            (
                "ANY of the domain",
                "cluster.local ANY",
                "NOERROR aa
                cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. SERIAL 7200 1800 86400 5",
            ),
            ("ANY of a name without records", "svc.cluster.local ANY", "NOERROR aa\nsoa cluster.local."),
            ("an unknown type", "api.web.svc.cluster.local TYPE65280", "NOERROR aa\nsoa cluster.local."),
            ("transfers are refused", "cluster.local AXFR", "REFUSED"),
            ("incremental transfers are refused too", "cluster.local TYPE251", "REFUSED"),
            ("a dotted name outside the cluster", "www.example.com A", "REFUSED"),
            ("the root", ". NS", "REFUSED"),
        ],
    },
    Group {
        title: "TTL",
        objects: "{kind: Service, metadata: {name: api, namespace: web}, spec: {clusterIP: 10.96.0.10}}",
        flags: &["--ttl", "3600", "--advertise", "10.96.0.53"],
        cases: &[
            ("an answer", "api.web.svc.cluster.local A", "NOERROR aa\napi.web.svc.cluster.local. 3600 A 10.96.0.10"),
            (
                "the SOA, never over five minutes",
                "cluster.local SOA",
                "NOERROR aa
                cluster.local. 300 SOA ns.dns.cluster.local. hostmaster.cluster.local. SERIAL 7200 1800 86400 3600",
            ),
            (
                "the schema version, whose TTL is fixed",
                "dns-version.cluster.local TXT",
                "NOERROR aa
                dns-version.cluster.local. 28800 TXT \"1.1.0\"",
            ),
        ],
    },
    Group {
        title: "a TTL of zero",
        objects: "{kind: Service, metadata: {name: api, namespace: web}, spec: {clusterIP: 10.96.0.10}}",
        flags: &["--ttl", "0"],
        cases: &[("an answer", "api.web.svc.cluster.local A", "NOERROR aa\napi.web.svc.cluster.local. 0 A 10.96.0.10")],
    },
    Group {
        title: "endpoints that share names, addresses and slices",
        objects: r#"
kind: Service
metadata: {name: db, namespace: web}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: db-4, namespace: web, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432}]
endpoints: [{addresses: [10.1.0.1], hostname: node}, {addresses: [10.1.0.2], hostname: node}]
---
kind: EndpointSlice
metadata: {name: db-6, namespace: web, labels: {kubernetes.io/service-name: db}}
addressType: IPv6
ports: [{name: sql, port: 5432}]
endpoints: [{addresses: ["fd00::1"], hostname: node}]
---
# The same address with another port: two slices, one name.
kind: EndpointSlice
metadata: {name: db-other, namespace: web, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 6432}, {name: admin, port: 8081}]
endpoints: [{addresses: [10.1.0.1], hostname: node}]
---
kind: Service
metadata: {name: also, namespace: web}
spec: {clusterIP: 10.96.0.7, ports: [{name: sql, port: 5432}]}
---
kind: EndpointSlice
metadata: {name: also-4, namespace: web, labels: {kubernetes.io/service-name: also}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.9], hostname: "10-1-0-1"}]
---
# Two orphans: one whose Service does not exist, one without a label.
kind: EndpointSlice
metadata: {name: orphan, namespace: web, labels: {kubernetes.io/service-name: gone}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.77]}]
---
kind: EndpointSlice
metadata: {name: unlabelled, namespace: web}
addressType: IPv4
endpoints: [{addresses: [10.1.0.78]}]
---
kind: EndpointSlice
metadata: {name: nothing, namespace: web, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: null
ports: null
"#,
        flags: &[],
        cases: &[
            (
                "a hostname with two addresses",
                "node.db.web.svc.cluster.local A",
                "NOERROR aa
                node.db.web.svc.cluster.local. 5 A 10.1.0.1
                node.db.web.svc.cluster.local. 5 A 10.1.0.2",
            ),
            (
                "a hostname with addresses of both families",
                "node.db.web.svc.cluster.local AAAA",
                "NOERROR aa
                node.db.web.svc.cluster.local. 5 AAAA fd00::1",
            ),
            (
                "an address in two slices is listed once",
                "db.web.svc.cluster.local A",
                "NOERROR aa
                db.web.svc.cluster.local. 5 A 10.1.0.1
                db.web.svc.cluster.local. 5 A 10.1.0.2",
            ),
            (
                "one port name with several numbers",
                "_sql._tcp.db.web.svc.cluster.local SRV",
                "NOERROR aa
                _sql._tcp.db.web.svc.cluster.local. 5 SRV 0 50 5432 node.db.web.svc.cluster.local.
                _sql._tcp.db.web.svc.cluster.local. 5 SRV 0 50 6432 node.db.web.svc.cluster.local.
                glue node.db.web.svc.cluster.local. 5 A 10.1.0.1
                glue node.db.web.svc.cluster.local. 5 A 10.1.0.2
                glue node.db.web.svc.cluster.local. 5 AAAA fd00::1",
            ),
            (
                "a port that only one slice has",
                "_admin._tcp.db.web.svc.cluster.local SRV",
                "NOERROR aa
                _admin._tcp.db.web.svc.cluster.local. 5 SRV 0 100 8081 node.db.web.svc.cluster.local.
                glue node.db.web.svc.cluster.local. 5 A 10.1.0.1
                glue node.db.web.svc.cluster.local. 5 A 10.1.0.2
                glue node.db.web.svc.cluster.local. 5 AAAA fd00::1",
            ),
            (
                "an address of two Services has two names",
                "1.0.1.10.in-addr.arpa PTR",
                "NOERROR aa
                1.0.1.10.in-addr.arpa. 5 PTR node.db.web.svc.cluster.local.
                1.0.1.10.in-addr.arpa. 5 PTR 10-1-0-1.also.web.svc.cluster.local.",
            ),
            (
                "a hostname that looks like another endpoint's address: both are listed",
                "10-1-0-1.also.web.svc.cluster.local A",
                "NOERROR aa
                10-1-0-1.also.web.svc.cluster.local. 5 A 10.1.0.9
                10-1-0-1.also.web.svc.cluster.local. 5 A 10.1.0.1",
            ),
            (
                "a slice of a missing Service has no names",
                "gone.web.svc.cluster.local A",
                "NXDOMAIN aa\nsoa cluster.local.",
            ),
            ("nor has it a reverse name", "77.0.1.10.in-addr.arpa PTR", "NXDOMAIN aa\nsoa 10.in-addr.arpa."),
            ("nor has a slice without a label", "78.0.1.10.in-addr.arpa PTR", "NXDOMAIN aa\nsoa 10.in-addr.arpa."),
            ("another type of a reverse name", "1.0.1.10.in-addr.arpa A", "NOERROR aa\nsoa 1.0.1.10.in-addr.arpa."),
            (
                "a reverse name with others below it (RFC 8020)",
                "1.10.in-addr.arpa PTR",
                "NOERROR aa\nsoa 1.10.in-addr.arpa.",
            ),
            ("the same, IPv6", "0.0.d.f.ip6.arpa PTR", "NOERROR aa\nsoa 0.0.d.f.ip6.arpa."),
            ("nothing is below an address", "x.1.0.1.10.in-addr.arpa PTR", "NXDOMAIN aa\nsoa 1.0.1.10.in-addr.arpa."),
            ("an address has one spelling", "01.0.1.10.in-addr.arpa PTR", "REFUSED"),
            ("an octet over 255", "1.0.256.10.in-addr.arpa PTR", "REFUSED"),
        ],
    },
    Group {
        title: "--endpoint-pod-names",
        objects: r#"
kind: Service
metadata: {name: db, namespace: web}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: db-4, namespace: web, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints:
- {addresses: [10.1.0.1], targetRef: {kind: Pod, name: db-5c9f}}
- {addresses: [10.1.0.2], targetRef: {kind: Pod, name: db.with.dots}}
- {addresses: [10.1.0.3], targetRef: {kind: Pod, name: db-7d2a}, hostname: three}
- {addresses: [10.1.0.4], targetRef: {kind: Node, name: worker}}
"#,
        flags: &["--endpoint-pod-names"],
        cases: &[
            (
                "a pod's name",
                "db-5c9f.db.web.svc.cluster.local A",
                "NOERROR aa\ndb-5c9f.db.web.svc.cluster.local. 5 A 10.1.0.1",
            ),
            (
                "PTR returns the same name",
                "1.0.1.10.in-addr.arpa PTR",
                "NOERROR aa
                1.0.1.10.in-addr.arpa. 5 PTR db-5c9f.db.web.svc.cluster.local.",
            ),
            (
                "a pod whose name is not a label",
                "10-1-0-2.db.web.svc.cluster.local A",
                "NOERROR aa
                10-1-0-2.db.web.svc.cluster.local. 5 A 10.1.0.2",
            ),
            (
                "a hostname takes precedence",
                "three.db.web.svc.cluster.local A",
                "NOERROR aa\nthree.db.web.svc.cluster.local. 5 A 10.1.0.3",
            ),
            (
                "then the pod's name does not exist",
                "db-7d2a.db.web.svc.cluster.local A",
                "NXDOMAIN aa\nsoa cluster.local.",
            ),
            (
                "an endpoint that is not a pod",
                "10-1-0-4.db.web.svc.cluster.local A",
                "NOERROR aa
                10-1-0-4.db.web.svc.cluster.local. 5 A 10.1.0.4",
            ),
        ],
    },
    Group {
        title: "endpoints that are names (addressType FQDN)",
        objects: r#"
kind: Service
metadata: {name: one, namespace: web}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: one-1, namespace: web, labels: {kubernetes.io/service-name: one}}
addressType: FQDN
endpoints: [{addresses: [db.example.com]}]
---
kind: Service
metadata: {name: two, namespace: web}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: two-1, namespace: web, labels: {kubernetes.io/service-name: two}}
addressType: FQDN
endpoints: [{addresses: [a.example.com]}, {addresses: [b.example.com]}]
---
kind: Service
metadata: {name: mixed, namespace: web}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: mixed-1, namespace: web, labels: {kubernetes.io/service-name: mixed}}
addressType: FQDN
endpoints: [{addresses: [a.example.com]}]
---
kind: EndpointSlice
metadata: {name: mixed-2, namespace: web, labels: {kubernetes.io/service-name: mixed}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1]}]
"#,
        flags: &[],
        cases: &[
            (
                "a sole endpoint is a CNAME",
                "one.web.svc.cluster.local A",
                "NOERROR aa\none.web.svc.cluster.local. 5 CNAME db.example.com.",
            ),
            (
                "a sole endpoint is a CNAME for any type",
                "one.web.svc.cluster.local SRV",
                "NOERROR aa\none.web.svc.cluster.local. 5 CNAME db.example.com.",
            ),
            ("several are skipped", "two.web.svc.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            (
                "one among addresses is skipped",
                "mixed.web.svc.cluster.local A",
                "NOERROR aa\nmixed.web.svc.cluster.local. 5 A 10.1.0.1",
            ),
        ],
    },
    Group {
        title: "the reverse name of a ClusterIP",
        objects: r#"
kind: Service
metadata: {name: api, namespace: web}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, "fd00:96::10"]}
---
kind: EndpointSlice
metadata: {name: api-1, namespace: web, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1]}]
---
kind: Service
metadata: {name: claim, namespace: another}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: claim-4, namespace: another, labels: {kubernetes.io/service-name: claim}}
addressType: IPv4
endpoints: [{addresses: [10.96.0.10], hostname: bank}, {addresses: [10.96.0.11], hostname: bank}]
---
kind: EndpointSlice
metadata: {name: claim-6, namespace: another, labels: {kubernetes.io/service-name: claim}}
addressType: IPv6
endpoints: [{addresses: ["fd00:96::10"], hostname: bank}]
"#,
        flags: &[],
        cases: &[
            (
                "another Service's slice adds no name",
                "10.0.96.10.in-addr.arpa PTR",
                "NOERROR aa
                10.0.96.10.in-addr.arpa. 5 PTR api.web.svc.cluster.local.",
            ),
            (
                "the same, IPv6",
                "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa PTR",
                "NOERROR aa
                0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa. 5 PTR api.web.svc.cluster.local.",
            ),
            (
                "an address that is no Service's ClusterIP belongs to its endpoint",
                "11.0.96.10.in-addr.arpa PTR",
                "NOERROR aa
                11.0.96.10.in-addr.arpa. 5 PTR bank.claim.another.svc.cluster.local.",
            ),
            (
                "endpoints of a Service with a ClusterIP have reverse names, too",
                "1.0.1.10.in-addr.arpa PTR",
                "NOERROR aa
                1.0.1.10.in-addr.arpa. 5 PTR 10-1-0-1.api.web.svc.cluster.local.",
            ),
        ],
    },
    Group {
        title: "--reverse-cidr",
        objects: r#"
kind: Service
metadata: {name: api, namespace: web}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, "fd00:96::10"]}
"#,
        flags: &[
            "--reverse-cidr",
            "10.96.0.0/12",
            "--reverse-cidr",
            "10.244.0.0/16",
            "--reverse-cidr",
            "fd00:96::/112",
        ],
        cases: &[
            (
                "an address with a name",
                "10.0.96.10.in-addr.arpa PTR",
                "NOERROR aa
                10.0.96.10.in-addr.arpa. 5 PTR api.web.svc.cluster.local.",
            ),
            ("inside a block, without a name", "11.0.96.10.in-addr.arpa PTR", "NXDOMAIN aa\nsoa 96.10.in-addr.arpa."),
            (
                "inside a block whose prefix ends within an octet",
                "1.0.97.10.in-addr.arpa PTR",
                "NXDOMAIN aa\nsoa 97.10.in-addr.arpa.",
            ),
            ("inside another block", "1.0.244.10.in-addr.arpa PTR", "NXDOMAIN aa\nsoa 244.10.in-addr.arpa."),
            (
                "inside an IPv6 block",
                "1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa PTR",
                "NXDOMAIN aa
                soa 0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.",
            ),
            ("outside every block", "1.0.112.11.in-addr.arpa PTR", "REFUSED"),
            ("outside every block, but private (RFC 6303)", "1.0.112.10.in-addr.arpa PTR", "NXDOMAIN aa\nsoa 10.in-addr.arpa."),
            (
                "another type of an address with a name",
                "10.0.96.10.in-addr.arpa TXT",
                "NOERROR aa\nsoa 96.10.in-addr.arpa.",
            ),
        ],
    },
    Group {
        title: "--pod-names off",
        objects: "{kind: Namespace, metadata: {name: web}}",
        flags: &[],
        cases: &[("no pod has a name", "10-1-0-1.web.pod.cluster.local A", "NXDOMAIN aa\nsoa cluster.local.")],
    },
    Group {
        title: "--pod-names any",
        objects: "{kind: Namespace, metadata: {name: web}}",
        flags: &["--pod-names", "any"],
        cases: &[
            (
                "any address",
                "10-1-0-1.web.pod.cluster.local A",
                "NOERROR aa\n10-1-0-1.web.pod.cluster.local. 5 A 10.1.0.1",
            ),
            ("the other address family", "10-1-0-1.web.pod.cluster.local AAAA", "NOERROR aa\nsoa cluster.local."),
            (
                "an IPv6 address",
                "fd00--1.web.pod.cluster.local AAAA",
                "NOERROR aa\nfd00--1.web.pod.cluster.local. 5 AAAA fd00::1",
            ),
            ("a label that is not an address", "web-1.web.pod.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("a namespace that does not exist", "10-1-0-1.nope.pod.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("nothing is below an address", "x.10-1-0-1.web.pod.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
        ],
    },
    Group {
        title: "--pod-names verified",
        objects: r#"
kind: Pod
metadata: {name: a, namespace: web}
status: {phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: "fd00::a:1"}]}
---
kind: Pod
metadata: {name: done, namespace: web}
status: {phase: Succeeded, podIP: 10.1.0.2}
---
kind: Pod
metadata: {name: going, namespace: web, deletionTimestamp: "2026-01-01T00:00:00Z"}
status: {phase: Running, podIP: 10.1.0.3}
---
kind: Pod
metadata: {name: host, namespace: web}
spec: {hostNetwork: true}
status: {phase: Running, podIP: 192.168.0.1}
"#,
        flags: &["--pod-names", "verified", "--pods", "all"],
        cases: &[
            (
                "a live pod",
                "10-1-0-1.web.pod.cluster.local A",
                "NOERROR aa\n10-1-0-1.web.pod.cluster.local. 5 A 10.1.0.1",
            ),
            (
                "its other address",
                "fd00--a-1.web.pod.cluster.local AAAA",
                "NOERROR aa
                fd00--a-1.web.pod.cluster.local. 5 AAAA fd00::a:1",
            ),
            (
                "addresses are compared, not their spelling",
                "fd00-0-0-0-0-0-a-1.web.pod.cluster.local AAAA",
                "NOERROR aa
                fd00-0-0-0-0-0-a-1.web.pod.cluster.local. 5 AAAA fd00::a:1",
            ),
            (
                "a pod on its node's network",
                "192-168-0-1.web.pod.cluster.local A",
                "NOERROR aa
                192-168-0-1.web.pod.cluster.local. 5 A 192.168.0.1",
            ),
            ("a finished pod", "10-1-0-2.web.pod.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("a pod being deleted", "10-1-0-3.web.pod.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("an address without a pod", "10-1-0-9.web.pod.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
        ],
    },
    Group {
        title: "several cluster domains",
        objects: r#"
kind: Service
metadata: {name: api, namespace: web}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {name: over, namespace: web}
spec: {type: ExternalName, externalName: api.web.svc.corp.example}
"#,
        flags: &["--cluster-domain", "cluster.local", "--cluster-domain", "corp.example"],
        cases: &[
            (
                "the first domain",
                "api.web.svc.cluster.local A",
                "NOERROR aa\napi.web.svc.cluster.local. 5 A 10.96.0.10",
            ),
            ("the second domain", "api.web.svc.corp.example A", "NOERROR aa\napi.web.svc.corp.example. 5 A 10.96.0.10"),
            (
                "targets are in the domain of the query",
                "_http._tcp.api.web.svc.corp.example SRV",
                "NOERROR aa
                _http._tcp.api.web.svc.corp.example. 5 SRV 0 100 80 api.web.svc.corp.example.
                glue api.web.svc.corp.example. 5 A 10.96.0.10",
            ),
            ("each domain has its own SOA", "nope.web.svc.corp.example A", "NXDOMAIN aa\nsoa corp.example."),
            (
                "PTR records use the first domain",
                "10.0.96.10.in-addr.arpa PTR",
                "NOERROR aa
                10.0.96.10.in-addr.arpa. 5 PTR api.web.svc.cluster.local.",
            ),
            (
                "a CNAME may lead from one domain to the other",
                "over.web.svc.cluster.local AAAA",
                "NOERROR aa
                over.web.svc.cluster.local. 5 CNAME api.web.svc.corp.example.
                soa corp.example.",
            ),
        ],
    },
];
