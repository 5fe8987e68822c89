//! A real etcd and kube-apiserver on loopback, from the folder that KUBEBUILDER_ASSETS names.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;

use super::Scratch;

pub struct RealApi {
    children: Vec<Child>,
    folder: Scratch,
    port: u16,
    runtime: tokio::runtime::Runtime,
    client: kube::Client,
}

const TOKEN: &str = "an-administrator";

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl RealApi {
    /// Starts both; returns `None` if `KUBEBUILDER_ASSETS` is not set.
    pub fn start() -> Option<RealApi> {
        let assets = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS")?);
        let folder = Scratch::folder("kube");
        let path = |name: &str| folder.0.join(name).display().to_string();
        let (etcd, peer, port) = (free_port(), free_port(), free_port());
        let log = |name: &str| Stdio::from(std::fs::File::create(folder.0.join(name)).unwrap());
        let quiet = |command: &mut Command, name: &str| {
            command.stdout(log(name)).stderr(log(&format!("{name}.err"))).spawn().unwrap()
        };
        let mut children = Vec::new();
        children.push(quiet(
            Command::new(assets.join("etcd"))
                .args(["--data-dir", &path("etcd"), "--unsafe-no-fsync"])
                .args([
                    "--listen-client-urls",
                    &format!("http://127.0.0.1:{etcd}"),
                    "--advertise-client-urls",
                    &format!("http://127.0.0.1:{etcd}"),
                ])
                .args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer}")]),
            "etcd.log",
        ));
        folder.file("tokens.csv", &format!("{TOKEN},admin,1,system:masters\n"));
        // Service accounts are not used, so any key will do.
        let key =
            Command::new("openssl").args(["genrsa", "-out", &path("sa.key"), "2048"]).stderr(Stdio::null()).status();
        assert!(key.is_ok_and(|status| status.success()), "openssl must create a key");
        children.push(quiet(
            Command::new(assets.join("kube-apiserver"))
                .args([
                    &format!("--etcd-servers=http://127.0.0.1:{etcd}"),
                    "--bind-address=127.0.0.1",
                    &format!("--secure-port={port}"),
                ])
                .args([
                    &format!("--cert-dir={}", path("certs")),
                    "--service-cluster-ip-range=10.96.0.0/16",
                    "--authorization-mode=AlwaysAllow",
                ])
                .args([
                    &format!("--token-auth-file={}", path("tokens.csv")),
                    "--disable-admission-plugins=ServiceAccount",
                ])
                .args([
                    &format!("--service-account-key-file={}", path("sa.key")),
                    &format!("--service-account-signing-key-file={}", path("sa.key")),
                ])
                .args(["--service-account-issuer=https://kubernetes.default.svc", "--advertise-address=127.0.0.1"]),
            "apiserver.log",
        ));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let text = kubeconfig(port);
        let client = runtime.block_on(async {
            let config = kube::config::Kubeconfig::from_yaml(&text).unwrap();
            let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap();
            kube::Client::try_from(config).unwrap()
        });
        let real = RealApi { children, folder, port, runtime, client };
        let start = Instant::now();
        while real.send("GET", "/readyz", None) != Some(200) {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "kube-apiserver is not ready; see {}",
                real.folder.0.display()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(real)
    }

    pub fn kubeconfig(&self) -> String {
        kubeconfig(self.port)
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Option<u16> {
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string().into_bytes()));
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        self.runtime.block_on(async {
            let response = self.client.send(request).await.ok()?;
            let status = response.status().as_u16();
            // The client reuses a connection only if the response was read.
            let _ = response.into_body().collect().await;
            Some(status)
        })
    }

    pub fn create(&self, object: Value) {
        let resource = super::scripted::resource_of(object["kind"].as_str().unwrap());
        let path = match object["metadata"]["namespace"].as_str() {
            Some(namespace) if resource == "endpointslices" => {
                format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/{resource}")
            }
            Some(namespace) => format!("/api/v1/namespaces/{namespace}/{resource}"),
            None => format!("/api/v1/{resource}"),
        };
        assert_eq!(self.send("POST", &path, Some(&object)), Some(201), "{object}");
    }

    pub fn replace(&self, object: Value) {
        let resource = super::scripted::resource_of(object["kind"].as_str().unwrap());
        let group = if resource == "endpointslices" { "/apis/discovery.k8s.io/v1" } else { "/api/v1" };
        let (namespace, name) = (&object["metadata"]["namespace"], &object["metadata"]["name"]);
        let path = format!("{group}/namespaces/{}/{resource}/{}", namespace.as_str().unwrap(), name.as_str().unwrap());
        assert_eq!(self.send("PUT", &path, Some(&object)), Some(200), "{object}");
    }

    pub fn delete(&self, resource: &str, namespace: &str, name: &str) {
        let group = if resource == "endpointslices" { "/apis/discovery.k8s.io/v1" } else { "/api/v1" };
        assert_eq!(self.send("DELETE", &format!("{group}/namespaces/{namespace}/{resource}/{name}"), None), Some(200));
    }
}

fn kubeconfig(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: it\nclusters: [{{name: it, cluster: {{server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true}}}}]\n\
         users: [{{name: it, user: {{token: {TOKEN}}}}}]\ncontexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n"
    )
}

impl Drop for RealApi {
    fn drop(&mut self) {
        // The API server first, because it does not exit without its etcd.
        for child in self.children.iter_mut().rev() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let start = Instant::now();
            while matches!(child.try_wait(), Ok(None)) {
                if start.elapsed() > Duration::from_secs(10) {
                    let _ = child.kill();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
