//! The manifests in `deploy/`: that their parts fit each other and the program. `.ci/deploy` compares them with the chart.

use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};

use crate::common::follower::{API, Follower, with_api};
use crate::common::scripted::WatchListSupport;

/// The places where Callsign runs, and the files that put it there.
const PLACES: [(&str, &[&str]); 4] = [
    ("cluster", &["base/callsign.yaml"]),
    ("node", &["node/callsign.yaml"]),
    ("sidecar", &["components/sidecar/sidecar.yaml", "components/sidecar/rbac.yaml"]),
    ("sidecar of a CronJob", &["components/sidecar/cronjob.yaml", "components/sidecar/rbac.yaml"]),
];

fn read(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents(files: &[&str]) -> Vec<Value> {
    let parse = |file: &&str| serde_saphyr::from_multiple::<Value>(&read(&format!("kustomize/{file}"))).unwrap();
    files.iter().flat_map(parse).collect()
}

/// Returns the pod's spec and Callsign's container.
fn pod(documents: &[Value]) -> (Value, Value) {
    let pods = ["/spec/template/spec", "/spec/jobTemplate/spec/template/spec"];
    let pod = documents.iter().find_map(|document| pods.iter().find_map(|path| document.pointer(path))).unwrap();
    let containers = ["containers", "initContainers"].iter().filter_map(|list| pod[*list].as_array()).flatten();
    let container = containers.into_iter().find(|container| container["name"] == "callsign").unwrap();
    (pod.clone(), container.clone())
}

/// Returns the arguments of the container as the kubelet would expand them in namespace `web`.
fn arguments(container: &Value) -> Vec<String> {
    let arguments = container["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
    arguments.map(|word| word.replace("$(CALLSIGN_NAMESPACE)", "web")).collect()
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    serve: callsign::config::ServeArgs,
}

fn seconds(value: &Value, default: u64) -> Duration {
    Duration::from_secs(value.as_u64().unwrap_or(default))
}

#[test]
fn probes_lame_duck_and_grace_period_fit_each_other() {
    // Time in which a change of readiness reaches kube-proxy on every node.
    let propagation = Duration::from_secs(3);
    // Time in which open connections end (`DRAIN_TIMEOUT`).
    let drain = Duration::from_secs(5);
    for (place, files) in PLACES {
        let (pod, container) = pod(&documents(files));
        let arguments = arguments(&container);
        assert_eq!(arguments[0], "serve", "{place}");
        let flags = Flags::try_parse_from(&arguments).unwrap_or_else(|error| panic!("{place}: {error}"));
        let (least, most) = (flags.serve.lame_duck, flags.serve.lame_duck_max);
        if place.starts_with("sidecar") {
            assert_eq!(least, Duration::ZERO, "{place}: its only clients end before it");
            continue;
        }
        let probe = &container["readinessProbe"];
        let failures = probe["failureThreshold"].as_u64().unwrap_or(3) as u32;
        let noticed = seconds(&probe["periodSeconds"], 10) * failures + seconds(&probe["timeoutSeconds"], 1);
        assert!(
            noticed + propagation <= least,
            "{place}: readiness is noticed after {noticed:?}, longer than {least:?}"
        );
        let grace = seconds(&pod["terminationGracePeriodSeconds"], 30);
        assert!(most + drain < grace, "{place}: {most:?} and {drain:?} do not fit into {grace:?}");
        assert!(least <= most, "{place}");
    }
}

#[test]
fn every_pod_is_allowed_where_pod_security_is_restricted() {
    for (place, files) in PLACES {
        let (pod, container) = pod(&documents(files));
        let security = &container["securityContext"];
        assert_eq!(security["runAsNonRoot"], true, "{place}");
        assert_eq!(security["allowPrivilegeEscalation"], false, "{place}");
        assert_eq!(security["readOnlyRootFilesystem"], true, "{place}");
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}), "{place}");
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{place}");
        for sysctl in pod["securityContext"]["sysctls"].as_array().unwrap() {
            assert_eq!(sysctl["name"], "net.ipv4.ip_unprivileged_port_start", "{place}: the only one that is needed");
        }
        assert!(["hostNetwork", "hostPID", "hostIPC"].iter().all(|key| pod[*key].is_null()), "{place}");
        for volume in pod["volumes"].as_array().into_iter().flatten() {
            assert!(volume["hostPath"].is_null(), "{place}: {volume}");
        }
    }
}

#[test]
fn roles_grant_exactly_the_requests_of_the_server() {
    for (place, files) in PLACES {
        let documents = documents(files);
        let role = documents.iter().find(|document| document["kind"].as_str().unwrap().ends_with("Role")).unwrap();
        let within = if role["kind"] == "Role" { "namespaces/web/" } else { "" };
        let mut allowed: Vec<String> = Vec::new();
        for rule in role["rules"].as_array().unwrap() {
            assert_eq!(rule["verbs"], json!(["list", "watch"]), "{place}");
            let group = match rule["apiGroups"].as_array().unwrap().as_slice() {
                [Value::String(core)] if core.is_empty() => "/api/v1".to_owned(),
                [Value::String(group)] => format!("/apis/{group}/v1"),
                other => panic!("{place}: {other:?}"),
            };
            let resources = rule["resources"].as_array().unwrap();
            allowed.extend(resources.iter().map(|name| format!("{group}/{within}{}", name.as_str().unwrap())));
        }
        allowed.sort();
        let (_, container) = pod(&documents);
        // Addresses and files are those of the test.
        let places = ["--listen", "--admin", "--health", "--saved", "--upstream"];
        let mut flags = arguments(&container).split_off(1);
        flags.retain(|flag| !places.iter().any(|of_test| flag.split('=').next() == Some(of_test)));
        flags.push("--node-name=node-1".to_owned());
        let api = with_api(WatchListSupport::Refused);
        let follower = Follower::start(&api.kubeconfig(), &flags.iter().map(String::as_str).collect::<Vec<_>>());
        follower.wait_for_answer(API, "10.96.0.10");
        let requests = api.requests();
        let mut requested: Vec<String> =
            requests.iter().map(|request| request.split('?').next().unwrap().to_owned()).collect();
        requested.sort();
        requested.dedup();
        assert_eq!(requested, allowed, "{place}");
    }
}

#[test]
fn every_binding_names_a_role_and_a_service_account_of_the_pod() {
    for (place, files) in PLACES {
        let documents = documents(files);
        let named = |suffix: &str| {
            documents.iter().find(|document| document["kind"].as_str().unwrap().ends_with(suffix)).unwrap()
        };
        let (role, binding) = (named("Role"), named("RoleBinding"));
        assert_eq!(binding["roleRef"]["kind"], role["kind"], "{place}");
        assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"], "{place}");
        let account = pod(&documents).0["serviceAccountName"].as_str().unwrap_or("default").to_owned();
        assert_eq!(binding["subjects"][0]["name"], *account, "{place}");
    }
}

#[test]
fn the_image_has_the_version_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    for folder in ["base", "node", "components/sidecar"] {
        let text = read(&format!("kustomize/{folder}/kustomization.yaml"));
        let kustomization: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(kustomization["images"][0]["newTag"], version, "{folder}");
    }
    let chart: Value = serde_saphyr::from_str(&read("helm/callsign/Chart.yaml")).unwrap();
    assert_eq!((&chart["appVersion"], &chart["version"]), (&json!(version), &json!(version)));
}

/// Reads an object as the API's own type and writes it again: a field that the API does not have is lost on the way.
fn as_the_api_reads_it(object: &Value) -> Option<Result<Value, serde_json::Error>> {
    use k8s_openapi::api::{apps, autoscaling, batch, core, networking, policy, rbac};
    fn read<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> Result<Value, serde_json::Error> {
        serde_json::to_value(serde_json::from_value::<T>(object.clone())?)
    }
    Some(match (object["apiVersion"].as_str()?, object["kind"].as_str()?) {
        ("apps/v1", "Deployment") => read::<apps::v1::Deployment>(object),
        ("apps/v1", "DaemonSet") => read::<apps::v1::DaemonSet>(object),
        ("apps/v1", "StatefulSet") => read::<apps::v1::StatefulSet>(object),
        ("batch/v1", "Job") => read::<batch::v1::Job>(object),
        ("batch/v1", "CronJob") => read::<batch::v1::CronJob>(object),
        ("v1", "Service") => read::<core::v1::Service>(object),
        ("v1", "ServiceAccount") => read::<core::v1::ServiceAccount>(object),
        ("v1", "Namespace") => read::<core::v1::Namespace>(object),
        ("v1", "ConfigMap") => read::<core::v1::ConfigMap>(object),
        ("v1", "Pod") => read::<core::v1::Pod>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => read::<rbac::v1::Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => read::<rbac::v1::RoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => read::<rbac::v1::ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => read::<rbac::v1::ClusterRoleBinding>(object),
        ("policy/v1", "PodDisruptionBudget") => read::<policy::v1::PodDisruptionBudget>(object),
        ("autoscaling/v2", "HorizontalPodAutoscaler") => read::<autoscaling::v2::HorizontalPodAutoscaler>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => read::<networking::v1::NetworkPolicy>(object),
        _ => return None,
    })
}

/// Returns the paths of what `written` lacks.
fn lost(given: &Value, written: &Value, path: &str, all: &mut Vec<String>) {
    match (given, written) {
        (Value::Object(given), Value::Object(written)) => {
            for (key, value) in given {
                lost(value, written.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}"), all);
            }
        }
        (Value::Array(given), Value::Array(written)) if given.len() == written.len() => {
            for (index, (given, written)) in given.iter().zip(written).enumerate() {
                lost(given, written, &format!("{path}[{index}]"), all);
            }
        }
        (given, written) if given != written => all.push(format!("{path}: {given}")),
        _ => {}
    }
}

#[test]
fn every_field_is_one_of_the_api() {
    let kustomize = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kustomize");
    let folders = ["base", "node", "components/sidecar"].map(|folder| kustomize.join(folder));
    // `.ci/deploy` names a folder with everything that the chart can render.
    let rendered = std::env::var_os("CALLSIGN_RENDERED").map(std::path::PathBuf::from);
    let mut seen = 0;
    for folder in folders.into_iter().chain(rendered) {
        let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        for file in files.filter(|file| file.extension().is_some_and(|end| end == "yaml")) {
            let documents: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(&file).unwrap()).unwrap();
            for mut document in documents {
                // A patch lacks what the API requires.
                if document["spec"]["template"].is_object() && document["spec"]["selector"].is_null() {
                    document["spec"]["selector"] = json!({});
                }
                let Some(read) = as_the_api_reads_it(&document) else { continue };
                let what = format!("{} {} of {}", document["kind"], document["metadata"]["name"], file.display());
                let read = read.unwrap_or_else(|error| panic!("{what}: {error}"));
                let mut all = Vec::new();
                lost(&document, &read, "", &mut all);
                assert!(all.is_empty(), "{what}: the API does not know {all:?}");
                seen += 1;
            }
        }
    }
    assert!(seen > 15, "{seen}");
}
