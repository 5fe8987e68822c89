//! The README does what it says: its commands are run, and its figures are made from real output and from the measured
//! tables. `CALLSIGN_WRITE_DOCS=1` writes the figures anew; the test compares them.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::common::process::{Server, run};

fn root(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the commands of a document's console blocks, with the output that is shown below each.
fn shown(document: &str) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut is_console = false;
    for line in document.lines() {
        match line {
            "```console" => is_console = true,
            "```" => is_console = false,
            _ if !is_console => {}
            line => match (line.strip_prefix("$ "), all.last_mut()) {
                (Some(command), _) => all.push((command.to_owned(), String::new())),
                (None, Some((_, output))) => *output += &format!("{line}\n"),
                (None, None) => panic!("output before the first command: {line}"),
            },
        }
    }
    all
}

/// Runs a command of the README as a shell would; `callsign` is this build, and dig asks `server`.
fn outcome(command: &str, server: &Server) -> Option<String> {
    if let Some(arguments) = command.strip_prefix("callsign ") {
        let output = run(&arguments.split(' ').collect::<Vec<_>>());
        let text = [output.stdout, output.stderr].concat();
        return Some(String::from_utf8(text).unwrap());
    }
    let arguments = command.strip_prefix("dig @127.0.0.1 -p 5300 ")?;
    let (arguments, is_sorted) = arguments.strip_suffix(" | sort").map_or((arguments, false), |all| (all, true));
    let mut dig = Command::new(std::env::var_os("CALLSIGN_DIG")?);
    let output =
        dig.args(["@127.0.0.1", "-p", &server.dns.port().to_string()]).args(arguments.split(' ')).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    if is_sorted {
        lines.sort_unstable();
    }
    Some(lines.iter().map(|line| format!("{line}\n")).collect())
}

#[test]
fn commands_of_the_readme_print_what_it_shows() {
    let server = Server::start(&["--manifests", "deploy/demo"], None);
    let of_web = Server::start(&["--manifests", "deploy/demo", "--namespace", "web"], None);
    let (mut compared, mut is_of_web) = (0, false);
    for (command, expected) in shown(&read("README.md")) {
        is_of_web |= command.contains("--namespace web");
        let Some(found) = outcome(&command, if is_of_web { &of_web } else { &server }) else { continue };
        assert_eq!(found.trim_end(), expected.trim_end(), "$ {command}");
        compared += 1;
    }
    assert!(compared >= 6, "the README shows {compared} commands with their output");
    // The line that the first command prints, except for the ports of this test.
    let line = read("README.md").lines().find(|line| line.starts_with("callsign 0.")).unwrap().to_owned();
    let words =
        |text: &str| text.split([' ', ',']).filter(|word| !word.contains(':')).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&line), words(server.line.trim_end()));
}

#[test]
fn commands_of_the_documents_have_flags_that_exist() {
    let mut parsed = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap().replace("\\\n", " ");
        for (command, _) in shown(&text).into_iter().filter(|(command, _)| command.starts_with("callsign ")) {
            // Explanations stand behind several spaces, and what follows a pipe or a redirection is the shell's.
            let command = command.split(" | ").next().unwrap().split(" > ").next().unwrap();
            let command = command.split("   ").next().unwrap();
            if let Err(error) = callsign::cli::parse(command.split_whitespace().map(str::to_owned).collect()) {
                assert!(!error.use_stderr(), "{}: {command}: {error}", document.display());
            }
            parsed += 1;
        }
    }
    assert!(parsed > 20, "{parsed}");
}

fn documents() -> Vec<std::path::PathBuf> {
    let all = std::fs::read_dir(root("docs")).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|end| end == "md")).chain([root("README.md")]).collect()
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let sources = ["src=\"", "srcset=\""]
            .iter()
            .flat_map(|key| text.split(key).skip(1))
            .filter_map(|rest| rest.split('"').next());
        for link in links.chain(sources).filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let path = document.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(path.exists(), "{}: {link}", document.display());
        }
    }
}

/// Colours of a figure: background, text, faint text, lines, Callsign, others.
struct Palette {
    name: &'static str,
    text: &'static str,
    faint: &'static str,
    line: &'static str,
    fill: &'static str,
    own: &'static str,
    other: &'static str,
}

/// GitHub's colours, so that the figures look at home there.
const PALETTES: [Palette; 2] = [
    Palette {
        name: "light",
        text: "#1f2328",
        faint: "#59636e",
        line: "#d1d9e0",
        fill: "#f6f8fa",
        own: "#0969da",
        other: "#afb8c1",
    },
    Palette {
        name: "dark",
        text: "#f0f6fc",
        faint: "#9198a1",
        line: "#3d444d",
        fill: "#151b23",
        own: "#4493f8",
        other: "#656c76",
    },
];

const FONT: &str = "font-family=\"ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\"";
const MONO: &str = "font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, monospace\"";

fn svg(width: u32, height: u32, title: &str, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n\
         <title>{title}</title>\n{body}</svg>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Draws what asks whom.
fn diagram(palette: &Palette) -> String {
    let Palette { text, faint, line, fill, own, .. } = palette;
    let mut body = format!(
        "<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto-start-reverse\">\
         <path d=\"M0 0L8 4L0 8z\" fill=\"{faint}\"/></marker></defs>\n"
    );
    let mut card = |x: u32, y: u32, width: u32, height: u32, is_own: bool, title: &str, lines: &[&str]| {
        let (stroke, weight) = if is_own { (own, 2) } else { (line, 1) };
        let _ = writeln!(
            body,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"{weight}\"/>\n\
             <text x=\"{}\" y=\"{}\" {FONT} font-size=\"15\" font-weight=\"600\" fill=\"{text}\" text-anchor=\"middle\">{title}</text>",
            x + width / 2,
            y + 26
        );
        for (index, words) in lines.iter().enumerate() {
            let _ = writeln!(
                body,
                "<text x=\"{}\" y=\"{}\" {MONO} font-size=\"12\" fill=\"{faint}\" text-anchor=\"middle\">{}</text>",
                x + width / 2,
                y + 48 + 18 * index as u32,
                escape(words)
            );
        }
    };
    card(
        16,
        60,
        200,
        120,
        false,
        "an application",
        &["http://api:3000", "api.web", "sab", "api.web.svc.cluster.local"],
    );
    card(
        310,
        60,
        220,
        120,
        true,
        "Callsign",
        &["every name of the cluster,", "in memory, read without", "a lock; other names from", "its cache"],
    );
    card(624, 16, 200, 84, false, "Kubernetes API", &["Services, EndpointSlices,", "Namespaces"]);
    card(624, 140, 200, 84, false, "upstreams", &["www.example.com,", "over UDP, TCP or TLS"]);
    for (path, words, x, y, anchor) in [
        ("M216 108H306", "question", 261, 100, "middle"),
        ("M306 132H220", "answer", 261, 150, "middle"),
        ("M624 58C584 58 574 90 534 96", "watch", 566, 62, "middle"),
        ("M530 144C574 150 584 182 620 182", "other names", 560, 190, "middle"),
    ] {
        let _ = writeln!(
            body,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{faint}\" stroke-width=\"1.5\" marker-end=\"url(#tip)\"/>\n\
             <text x=\"{x}\" y=\"{y}\" {FONT} font-size=\"12\" fill=\"{faint}\" text-anchor=\"{anchor}\">{words}</text>"
        );
    }
    svg(
        840,
        240,
        "An application asks Callsign, which watches the Kubernetes API and asks upstreams for other names",
        &body,
    )
}

/// Draws the first table of docs/performance.md: processor time an answer, as a multiple of the kernel's own.
fn chart(palette: &Palette) -> String {
    let Palette { text, faint, line, own, other, .. } = palette;
    let document = read("docs/performance.md");
    let table = document.split("| all A |").nth(1).expect("a table of all A");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|')).map(|line| {
        let cells: Vec<&str> = line.split('|').map(|cell| cell.trim().trim_matches('*')).collect();
        (cells[1].to_owned(), cells[4].parse::<f64>().unwrap())
    });
    let rows: Vec<(String, f64)> = rows.filter(|(name, _)| name != "echo").collect();
    assert!(rows.len() >= 3, "{rows:?}");
    let most = rows.iter().map(|(_, times)| *times).fold(0.0, f64::max);
    let scale = 520.0 / most;
    let mut body = format!(
        "<text x=\"16\" y=\"28\" {FONT} font-size=\"15\" font-weight=\"600\" fill=\"{text}\">Processor time an answer, as a multiple of a UDP echo</text>\n\
         <text x=\"16\" y=\"48\" {FONT} font-size=\"12\" fill=\"{faint}\">Less is better. 2,000 Services, one worker, the same core, questions of type A: docs/performance.md</text>\n"
    );
    for (index, (name, times)) in rows.iter().enumerate() {
        let y = 66 + 34 * index;
        let fill = if name == "Callsign" { own } else { other };
        let _ = writeln!(
            body,
            "<text x=\"112\" y=\"{}\" {FONT} font-size=\"14\" fill=\"{text}\" text-anchor=\"end\">{name}</text>\n\
             <rect x=\"124\" y=\"{y}\" width=\"{:.1}\" height=\"22\" rx=\"3\" fill=\"{fill}\"/>\n\
             <text x=\"{:.1}\" y=\"{}\" {FONT} font-size=\"13\" fill=\"{text}\">{times:.2}</text>",
            y + 16,
            times * scale,
            124.0 + times * scale + 8.0,
            y + 16
        );
    }
    let bottom = 66 + 34 * rows.len();
    let _ = writeln!(
        body,
        "<path d=\"M{x:.1} 60V{bottom}\" stroke=\"{line}\" stroke-dasharray=\"4 4\"/>\n\
         <text x=\"{x:.1}\" y=\"{}\" {FONT} font-size=\"12\" fill=\"{faint}\" text-anchor=\"middle\">1 = the echo</text>",
        bottom + 14,
        x = 124.0 + scale
    );
    let height = u32::try_from(bottom).unwrap() + 26;
    svg(720, height, "Processor time an answer of Callsign, NSD, Knot DNS and CoreDNS", &body)
}

/// Commands of the recording.
const RECORDED: [&str; 4] = [
    "callsign services -n web --manifests deploy/demo",
    "callsign explain http://api:3000 --from web --manifests deploy/demo",
    "callsign explain scheduler.backoffice --from web --manifests deploy/demo",
    "callsign env --for web/web --link api --manifests deploy/demo",
];

/// Draws a terminal in which the commands run one after another, from their real output.
fn recording() -> String {
    const LINE: usize = 18;
    let mut body = String::new();
    let (mut rows, mut at) = (Vec::new(), 0.5);
    for command in RECORDED {
        let output = run(&command.split(' ').skip(1).collect::<Vec<_>>());
        let short = command.replace(" --manifests deploy/demo", "");
        rows.push((at, format!("$ {short}"), true));
        at += 1.2;
        for line in String::from_utf8([output.stdout, output.stderr].concat()).unwrap().lines() {
            rows.push((at, line.to_owned(), false));
        }
        rows.push((at, String::new(), false));
        at += 3.0;
    }
    let widest = rows.iter().map(|(_, text, _)| text.chars().count()).max().unwrap();
    let (width, height) = (40 + widest * 8, 56 + rows.len() * LINE);
    let _ = writeln!(
        body,
        "<style>text{{opacity:0;animation:show .2s forwards}}@keyframes show{{to{{opacity:1}}}}\
         @media (prefers-reduced-motion:reduce){{text{{animation:none;opacity:1}}}}</style>\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#0d1117\"/>\n\
         <g fill=\"#656c76\"><circle cx=\"20\" cy=\"18\" r=\"5\"/><circle cx=\"38\" cy=\"18\" r=\"5\"/><circle cx=\"56\" cy=\"18\" r=\"5\"/></g>"
    );
    for (index, (time, text, is_command)) in rows.iter().enumerate().filter(|(_, (_, text, _))| !text.is_empty()) {
        let fill = if *is_command { "#4493f8" } else { "#d1d7e0" };
        let _ = writeln!(
            body,
            "<text x=\"20\" y=\"{}\" {MONO} font-size=\"13\" fill=\"{fill}\" xml:space=\"preserve\" style=\"animation-delay:{time:.1}s\">{}</text>",
            52 + index * LINE,
            escape(text)
        );
    }
    svg(width as u32, height as u32, "A terminal: services, explain and env on the demo cluster", &body)
}

#[test]
fn figures_are_made_from_what_is_measured_and_printed() {
    let mut figures = vec![("docs/figures/terminal.svg".to_owned(), recording())];
    for palette in &PALETTES {
        figures.push((format!("docs/figures/how-{}.svg", palette.name), diagram(palette)));
        figures.push((format!("docs/figures/peers-{}.svg", palette.name), chart(palette)));
    }
    for (path, figure) in figures {
        if std::env::var_os("CALLSIGN_WRITE_DOCS").is_some() {
            std::fs::write(root(&path), &figure).unwrap();
        }
        assert!(read(&path) == figure, "{path} is out of date: run the test with CALLSIGN_WRITE_DOCS=1");
    }
}
