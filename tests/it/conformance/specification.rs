//! Cases by section of Kubernetes DNS-Based Service Discovery 1.1.0.

use super::Group;

pub const GROUPS: &[Group] = &[
    Group {
        title: "2.2 record for schema version",
        objects: "{kind: Namespace, metadata: {name: default}}",
        flags: &[],
        cases: &[
            ("the version", "dns-version.cluster.local TXT", r#"NOERROR aa
                dns-version.cluster.local. 28800 TXT "1.1.0""#),
            ("another type of the version", "dns-version.cluster.local A", "NOERROR aa\nsoa cluster.local."),
            ("nothing is below the version", "x.dns-version.cluster.local TXT", "NXDOMAIN aa\nsoa cluster.local."),
        ],
    },
    Group {
        title: "2.3 records for a Service with ClusterIP",
        objects: r#"
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {clusterIP: 10.3.0.1, ports: [{name: https, port: 443}, {name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}, {port: 9000}]}
---
kind: Service
metadata: {name: dual, namespace: default}
spec: {clusterIP: 10.3.0.2, clusterIPs: [10.3.0.2, "fd00:3::2"], ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {name: six, namespace: default}
spec: {clusterIP: "fd00:3::3", ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {name: portless, namespace: default}
spec: {clusterIP: 10.3.0.4}
---
kind: EndpointSlice
metadata: {name: kubernetes-1, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
ports: [{name: https, port: 6443}]
endpoints: [{addresses: [192.168.7.1], hostname: node-1}, {addresses: [192.168.7.2]}]
"#,
        flags: &[],
        cases: &[
            ("2.3.1 A", "kubernetes.default.svc.cluster.local A", "NOERROR aa
                kubernetes.default.svc.cluster.local. 5 A 10.3.0.1"),
            ("2.3.1 AAAA of an IPv4-only Service", "kubernetes.default.svc.cluster.local AAAA", "NOERROR aa
                soa cluster.local."),
            ("2.3.1 A of a dual-stack Service", "dual.default.svc.cluster.local A", "NOERROR aa
                dual.default.svc.cluster.local. 5 A 10.3.0.2"),
            ("2.3.1 AAAA of a dual-stack Service", "dual.default.svc.cluster.local AAAA", "NOERROR aa
                dual.default.svc.cluster.local. 5 AAAA fd00:3::2"),
            ("2.3.1 A of an IPv6-only Service", "six.default.svc.cluster.local A", "NOERROR aa\nsoa cluster.local."),
            ("a Service with an address exists without endpoints", "six.default.svc.cluster.local AAAA", "NOERROR aa
                six.default.svc.cluster.local. 5 AAAA fd00:3::3"),
            ("2.3.2 SRV of a named port", "_https._tcp.kubernetes.default.svc.cluster.local SRV", "NOERROR aa
                _https._tcp.kubernetes.default.svc.cluster.local. 5 SRV 0 100 443 kubernetes.default.svc.cluster.local.
                glue kubernetes.default.svc.cluster.local. 5 A 10.3.0.1"),
            ("2.3.2 SRV with glue of both families", "_http._tcp.dual.default.svc.cluster.local SRV", "NOERROR aa
                _http._tcp.dual.default.svc.cluster.local. 5 SRV 0 100 80 dual.default.svc.cluster.local.
                glue dual.default.svc.cluster.local. 5 A 10.3.0.2
                glue dual.default.svc.cluster.local. 5 AAAA fd00:3::2"),
            ("2.3.2 SRV by protocol", "_dns._udp.kubernetes.default.svc.cluster.local SRV", "NOERROR aa
                _dns._udp.kubernetes.default.svc.cluster.local. 5 SRV 0 100 53 kubernetes.default.svc.cluster.local.
                glue kubernetes.default.svc.cluster.local. 5 A 10.3.0.1"),
            ("a wrong protocol", "_dns._tcp.kubernetes.default.svc.cluster.local SRV", "NXDOMAIN aa\nsoa cluster.local."),
            ("a wrong port", "_smtp._tcp.kubernetes.default.svc.cluster.local SRV", "NXDOMAIN aa\nsoa cluster.local."),
            ("underscores are required", "https.tcp.kubernetes.default.svc.cluster.local SRV", "NXDOMAIN aa\nsoa cluster.local."),
            ("an unnamed port has no SRV name", "_9000._tcp.kubernetes.default.svc.cluster.local SRV", "NXDOMAIN aa\nsoa cluster.local."),
            ("another type of an SRV name", "_https._tcp.kubernetes.default.svc.cluster.local A", "NOERROR aa\nsoa cluster.local."),
            ("a protocol with a port below it (RFC 8020)", "_udp.kubernetes.default.svc.cluster.local SRV", "NOERROR aa\nsoa cluster.local."),
            ("a protocol without a port below it", "_sctp.kubernetes.default.svc.cluster.local SRV", "NXDOMAIN aa\nsoa cluster.local."),
            ("SRV of the Service: each port number once, weights share 100", "kubernetes.default.svc.cluster.local SRV", "NOERROR aa
                kubernetes.default.svc.cluster.local. 5 SRV 0 33 443 kubernetes.default.svc.cluster.local.
                kubernetes.default.svc.cluster.local. 5 SRV 0 33 53 kubernetes.default.svc.cluster.local.
                kubernetes.default.svc.cluster.local. 5 SRV 0 33 9000 kubernetes.default.svc.cluster.local.
                glue kubernetes.default.svc.cluster.local. 5 A 10.3.0.1"),
            ("SRV of a Service without ports", "portless.default.svc.cluster.local SRV", "NOERROR aa\nsoa cluster.local."),
            ("2.3.3 PTR", "1.0.3.10.in-addr.arpa PTR", "NOERROR aa
                1.0.3.10.in-addr.arpa. 5 PTR kubernetes.default.svc.cluster.local."),
            ("2.3.3 PTR of IPv6", "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.0.0.0.d.f.ip6.arpa PTR", "NOERROR aa
                2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.0.0.0.d.f.ip6.arpa. 5 PTR dual.default.svc.cluster.local."),
            ("PTR of an endpoint with a hostname", "1.7.168.192.in-addr.arpa PTR", "NOERROR aa
                1.7.168.192.in-addr.arpa. 5 PTR node-1.kubernetes.default.svc.cluster.local."),
            ("PTR of an endpoint without a hostname", "2.7.168.192.in-addr.arpa PTR", "NOERROR aa
                2.7.168.192.in-addr.arpa. 5 PTR 192-168-7-2.kubernetes.default.svc.cluster.local."),
            ("an endpoint's name", "node-1.kubernetes.default.svc.cluster.local A", "NOERROR aa
                node-1.kubernetes.default.svc.cluster.local. 5 A 192.168.7.1"),
            ("an endpoint's name made from its address", "192-168-7-2.kubernetes.default.svc.cluster.local A", "NOERROR aa
                192-168-7-2.kubernetes.default.svc.cluster.local. 5 A 192.168.7.2"),
            ("an endpoint with a hostname has no other name", "192-168-7-1.kubernetes.default.svc.cluster.local A", "NXDOMAIN aa
                soa cluster.local."),
            ("SRV of an endpoint's name: the slice's port", "node-1.kubernetes.default.svc.cluster.local SRV", "NOERROR aa
                node-1.kubernetes.default.svc.cluster.local. 5 SRV 0 100 6443 node-1.kubernetes.default.svc.cluster.local.
                glue node-1.kubernetes.default.svc.cluster.local. 5 A 192.168.7.1"),
        ],
    },
    Group {
        title: "2.4 records for a headless Service",
        objects: r#"
kind: Service
metadata: {name: headless, namespace: default}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
kind: EndpointSlice
metadata: {name: headless-1, namespace: default, labels: {kubernetes.io/service-name: headless}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: metrics, port: 9090}]
endpoints:
- {addresses: [10.3.0.100], hostname: my-pet, conditions: {ready: true}}
- {addresses: [10.3.0.101], hostname: my-pet-2, conditions: {ready: null}}
- {addresses: [10.3.0.102]}
- {addresses: [10.3.0.103], hostname: unready, conditions: {ready: false}}
- {addresses: [10.3.0.104], hostname: leaving, conditions: {ready: false, serving: true, terminating: true}}
---
kind: EndpointSlice
metadata: {name: headless-2, namespace: default, labels: {kubernetes.io/service-name: headless}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: metrics, port: 9090}]
endpoints: [{addresses: [10.3.0.102]}]
---
kind: Service
metadata: {name: empty, namespace: default}
spec: {clusterIP: None}
---
kind: Service
metadata: {name: unready, namespace: default}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: unready-1, namespace: default, labels: {kubernetes.io/service-name: unready}}
addressType: IPv4
endpoints: [{addresses: [10.3.1.1], hostname: a, conditions: {ready: false}}]
---
kind: Service
metadata: {name: six, namespace: default}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: six-1, namespace: default, labels: {kubernetes.io/service-name: six}}
addressType: IPv6
endpoints: [{addresses: ["fd00:10:244::55"]}, {addresses: ["fd00:10:244::"]}]
"#,
        flags: &[],
        cases: &[
            ("2.4.1 A: every ready endpoint of all slices, duplicates once", "headless.default.svc.cluster.local A", "NOERROR aa
                headless.default.svc.cluster.local. 5 A 10.3.0.100
                headless.default.svc.cluster.local. 5 A 10.3.0.101
                headless.default.svc.cluster.local. 5 A 10.3.0.102"),
            ("2.4.1 AAAA while only IPv4 is ready", "headless.default.svc.cluster.local AAAA", "NOERROR aa\nsoa cluster.local."),
            ("2.4.1 no slice", "empty.default.svc.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("2.4.1 no ready endpoint", "unready.default.svc.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("2.4.1 no ready endpoint, SRV", "unready.default.svc.cluster.local SRV", "NXDOMAIN aa\nsoa cluster.local."),
            ("2.4.1 an endpoint that is not ready has no name", "a.unready.default.svc.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("2.4.1 AAAA", "six.default.svc.cluster.local AAAA", "NOERROR aa
                six.default.svc.cluster.local. 5 AAAA fd00:10:244::
                six.default.svc.cluster.local. 5 AAAA fd00:10:244::55"),
            ("2.4.1 A while only IPv6 is ready", "six.default.svc.cluster.local A", "NOERROR aa\nsoa cluster.local."),
            ("2.4.1 an endpoint's name", "my-pet.headless.default.svc.cluster.local A", "NOERROR aa
                my-pet.headless.default.svc.cluster.local. 5 A 10.3.0.100"),
            ("ready: null means ready", "my-pet-2.headless.default.svc.cluster.local A", "NOERROR aa
                my-pet-2.headless.default.svc.cluster.local. 5 A 10.3.0.101"),
            ("an endpoint without a hostname is named by its address", "10-3-0-102.headless.default.svc.cluster.local A", "NOERROR aa
                10-3-0-102.headless.default.svc.cluster.local. 5 A 10.3.0.102"),
            ("an IPv6 endpoint without a hostname is named by its address", "fd00-10-244--55.six.default.svc.cluster.local AAAA", "NOERROR aa
                fd00-10-244--55.six.default.svc.cluster.local. 5 AAAA fd00:10:244::55"),
            ("a label does not end with a dash: a zero is added", "fd00-10-244--0.six.default.svc.cluster.local AAAA", "NOERROR aa
                fd00-10-244--0.six.default.svc.cluster.local. 5 AAAA fd00:10:244::"),
            ("an address has one spelling", "fd00-10-244-0-0-0-0-55.six.default.svc.cluster.local AAAA", "NXDOMAIN aa\nsoa cluster.local."),
            ("terminating is not ready", "leaving.headless.default.svc.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
            ("2.4.2 SRV: the port of the slice, each endpoint name", "_http._tcp.headless.default.svc.cluster.local SRV", "NOERROR aa
                _http._tcp.headless.default.svc.cluster.local. 5 SRV 0 33 8080 10-3-0-102.headless.default.svc.cluster.local.
                _http._tcp.headless.default.svc.cluster.local. 5 SRV 0 33 8080 my-pet.headless.default.svc.cluster.local.
                _http._tcp.headless.default.svc.cluster.local. 5 SRV 0 33 8080 my-pet-2.headless.default.svc.cluster.local.
                glue 10-3-0-102.headless.default.svc.cluster.local. 5 A 10.3.0.102
                glue my-pet.headless.default.svc.cluster.local. 5 A 10.3.0.100
                glue my-pet-2.headless.default.svc.cluster.local. 5 A 10.3.0.101"),
            ("2.4.2 SRV of the Service: every port of every endpoint name", "headless.default.svc.cluster.local SRV", "NOERROR aa
                headless.default.svc.cluster.local. 5 SRV 0 16 8080 10-3-0-102.headless.default.svc.cluster.local.
                headless.default.svc.cluster.local. 5 SRV 0 16 9090 10-3-0-102.headless.default.svc.cluster.local.
                headless.default.svc.cluster.local. 5 SRV 0 16 8080 my-pet.headless.default.svc.cluster.local.
                headless.default.svc.cluster.local. 5 SRV 0 16 9090 my-pet.headless.default.svc.cluster.local.
                headless.default.svc.cluster.local. 5 SRV 0 16 8080 my-pet-2.headless.default.svc.cluster.local.
                headless.default.svc.cluster.local. 5 SRV 0 16 9090 my-pet-2.headless.default.svc.cluster.local.
                glue 10-3-0-102.headless.default.svc.cluster.local. 5 A 10.3.0.102
                glue my-pet.headless.default.svc.cluster.local. 5 A 10.3.0.100
                glue my-pet-2.headless.default.svc.cluster.local. 5 A 10.3.0.101"),
            ("2.4.2 a port that no slice has", "_smtp._tcp.headless.default.svc.cluster.local SRV", "NXDOMAIN aa\nsoa cluster.local."),
            ("2.4.2 a protocol with a port below it", "_tcp.headless.default.svc.cluster.local A", "NOERROR aa\nsoa cluster.local."),
            ("2.4.2 slices without ports have no SRV", "six.default.svc.cluster.local SRV", "NOERROR aa\nsoa cluster.local."),
            ("2.4.2 slices without ports have no protocol names", "_tcp.six.default.svc.cluster.local SRV", "NXDOMAIN aa\nsoa cluster.local."),
            ("2.4.3 PTR", "100.0.3.10.in-addr.arpa PTR", "NOERROR aa
                100.0.3.10.in-addr.arpa. 5 PTR my-pet.headless.default.svc.cluster.local."),
            ("2.4.3 PTR of IPv6", "5.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa PTR", "NOERROR aa
                5.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.1.0.0.0.0.d.f.ip6.arpa. 5 PTR fd00-10-244--55.six.default.svc.cluster.local."),
            ("2.4.3 an endpoint that is not ready has no PTR", "103.0.3.10.in-addr.arpa PTR", "NXDOMAIN aa\nsoa 10.in-addr.arpa."),
        ],
    },
    Group {
        title: "2.5 records for external name Services",
        objects: r#"
kind: Service
metadata: {name: foo, namespace: default}
spec: {type: ExternalName, externalName: www.Example.com}
---
kind: Service
metadata: {name: inner, namespace: default}
spec: {type: ExternalName, externalName: target.other.svc.cluster.local.}
---
kind: Service
metadata: {name: two-steps, namespace: default}
spec: {type: ExternalName, externalName: inner.default.svc.cluster.local}
---
kind: Service
metadata: {name: dangling, namespace: default}
spec: {type: ExternalName, externalName: missing.other.svc.cluster.local}
---
kind: Service
metadata: {name: loop-a, namespace: default}
spec: {type: ExternalName, externalName: loop-b.default.svc.cluster.local}
---
kind: Service
metadata: {name: loop-b, namespace: default}
spec: {type: ExternalName, externalName: loop-a.default.svc.cluster.local}
---
kind: Service
metadata: {name: myself, namespace: default}
spec: {type: ExternalName, externalName: myself.default.svc.cluster.local}
---
kind: Service
metadata: {name: literal, namespace: default}
spec: {type: ExternalName, externalName: 192.0.2.7}
---
kind: Service
metadata: {name: target, namespace: other}
spec: {clusterIP: 10.3.0.9, ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {name: quiet, namespace: other}
spec: {clusterIP: None}
---
kind: Service
metadata: {name: to-quiet, namespace: default}
spec: {type: ExternalName, externalName: quiet.other.svc.cluster.local}
"#,
        flags: &[],
        cases: &[
            ("CNAME", "foo.default.svc.cluster.local CNAME", "NOERROR aa
                foo.default.svc.cluster.local. 5 CNAME www.example.com."),
            ("CNAME for any type: A", "foo.default.svc.cluster.local A", "NOERROR aa
                foo.default.svc.cluster.local. 5 CNAME www.example.com."),
            ("CNAME for any type: AAAA", "foo.default.svc.cluster.local AAAA", "NOERROR aa
                foo.default.svc.cluster.local. 5 CNAME www.example.com."),
            ("CNAME for any type: TXT", "foo.default.svc.cluster.local TXT", "NOERROR aa
                foo.default.svc.cluster.local. 5 CNAME www.example.com."),
            ("nothing is below an ExternalName", "_http._tcp.foo.default.svc.cluster.local SRV", "NXDOMAIN aa\nsoa cluster.local."),
            ("a target in the cluster is followed", "inner.default.svc.cluster.local A", "NOERROR aa
                inner.default.svc.cluster.local. 5 CNAME target.other.svc.cluster.local.
                target.other.svc.cluster.local. 5 A 10.3.0.9"),
            ("a target in the cluster without that type", "inner.default.svc.cluster.local AAAA", "NOERROR aa
                inner.default.svc.cluster.local. 5 CNAME target.other.svc.cluster.local.
                soa cluster.local."),
            ("a CNAME query does not follow the target", "inner.default.svc.cluster.local CNAME", "NOERROR aa
                inner.default.svc.cluster.local. 5 CNAME target.other.svc.cluster.local."),
            ("a chain of two CNAMEs", "two-steps.default.svc.cluster.local A", "NOERROR aa
                two-steps.default.svc.cluster.local. 5 CNAME inner.default.svc.cluster.local.
                inner.default.svc.cluster.local. 5 CNAME target.other.svc.cluster.local.
                target.other.svc.cluster.local. 5 A 10.3.0.9"),
            ("SRV behind a CNAME", "inner.default.svc.cluster.local SRV", "NOERROR aa
                inner.default.svc.cluster.local. 5 CNAME target.other.svc.cluster.local.
                target.other.svc.cluster.local. 5 SRV 0 100 80 target.other.svc.cluster.local.
                glue target.other.svc.cluster.local. 5 A 10.3.0.9"),
            ("a target that does not exist (RFC 6604)", "dangling.default.svc.cluster.local A", "NXDOMAIN aa
                dangling.default.svc.cluster.local. 5 CNAME missing.other.svc.cluster.local.
                soa cluster.local."),
            ("a headless target without endpoints does not exist", "to-quiet.default.svc.cluster.local A", "NXDOMAIN aa
                to-quiet.default.svc.cluster.local. 5 CNAME quiet.other.svc.cluster.local.
                soa cluster.local."),
            ("a loop returns each of its CNAMEs once", "loop-a.default.svc.cluster.local A", "NOERROR aa
                loop-a.default.svc.cluster.local. 5 CNAME loop-b.default.svc.cluster.local.
                loop-b.default.svc.cluster.local. 5 CNAME loop-a.default.svc.cluster.local."),
            ("a CNAME to itself", "myself.default.svc.cluster.local A", "NOERROR aa
                myself.default.svc.cluster.local. 5 CNAME myself.default.svc.cluster.local."),
            ("an IP literal as target", "literal.default.svc.cluster.local A", "NXDOMAIN aa\nsoa cluster.local."),
        ],
    },
];
