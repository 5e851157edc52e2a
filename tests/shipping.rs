//! What is shipped beside the binary: the image, the compose file, the Kubernetes objects, the scripts. No container
//! engine is at hand, so each is read by the real thing that reads it first (`kubectl kustomize` with the API's schemas,
//! the compose specification's parser, hadolint, shellcheck; `make test` installs them), and then held against what the
//! program itself says: its variables, its HTTP paths, its version, its grace period.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use chaintap::config::{
    Limits,
    variables::{self, Secrecy},
};
use serde_json::{Value, json};

mod support;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of the files of a folder that end so, sorted.
fn names(folder: &str, end: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| name.ends_with(end)).collect()
}

/// Runs a program of `.dev/venv` in the repository's root; gives what it prints, and panics with it where it fails.
fn tool(name: &str, arguments: &[&str]) -> String {
    let program = support::process::dev_dir().join("venv/bin").join(name);
    let output = Command::new(&program).args(arguments).current_dir(root()).output();
    let output =
        output.unwrap_or_else(|error| panic!("{}: {error}; run `make tools` to install it", program.display()));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{name} {arguments:?}:\n{printed}{}", String::from_utf8_lossy(&output.stderr));
    printed
}

/// The documents of a YAML file, anchors and merges resolved.
fn yaml(path: &str) -> Vec<Value> {
    const SCRIPT: &str = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    serde_json::from_str(&tool("python", &["-c", SCRIPT, path])).unwrap()
}

#[track_caller]
fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no text at {pointer} in {value:#}"))
}

/// The members of an array or object; none where there is none.
fn members<'a>(value: &'a Value, pointer: &str) -> Vec<&'a Value> {
    match value.pointer(pointer) {
        Some(Value::Array(items)) => items.iter().collect(),
        Some(Value::Object(items)) => items.values().collect(),
        _ => Vec::new(),
    }
}

#[track_caller]
fn assert_is_a_variable(name: &str) {
    let plain = name.strip_suffix("_FILE").unwrap_or(name);
    assert!(variables::find(plain).is_some(), "{name} is no variable of chaintap");
}

mod kubernetes {
    use super::*;

    /// The rendered objects of every overlay, by the overlay's name; each file is checked against the API's schemas.
    static OVERLAYS: LazyLock<BTreeMap<String, Vec<Value>>> = LazyLock::new(|| {
        let scratch = tempfile::tempdir().unwrap();
        let render = |chain: String| {
            let rendered = tool("kubectl", &["kustomize", &format!("kubernetes/overlays/{chain}")]);
            let file = scratch.path().join(&chain).with_extension("yaml").to_str().unwrap().to_owned();
            fs::write(&file, rendered).unwrap();
            tool("kubernetes-validate", &["--strict", &file]);
            (chain, yaml(&file))
        };
        names("kubernetes/overlays", "").into_iter().map(render).collect()
    });

    #[track_caller]
    fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
        let mut found = objects.iter().filter(|object| object["kind"] == kind);
        let first = found.next().unwrap_or_else(|| panic!("no {kind}"));
        assert!(found.next().is_none(), "more than one {kind}");
        first
    }

    fn config_map<'a>(objects: &'a [Value], begins: &str) -> &'a Value {
        let mut maps = objects.iter().filter(|object| object["kind"] == "ConfigMap");
        maps.find(|map| text(map, "/metadata/name").starts_with(begins))
            .unwrap_or_else(|| panic!("no ConfigMap {begins}"))
    }

    fn container(objects: &[Value]) -> &Value {
        &only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    }

    #[test]
    fn the_released_binary_ends_where_a_number_overflows_instead_of_going_on_with_another() {
        for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
            let manifest: toml::Table = read(manifest).parse().unwrap();
            let profile = manifest["profile"]["release"].as_table().unwrap();
            assert_eq!(profile.get("overflow-checks"), Some(&toml::Value::Boolean(true)), "{profile:?}");
        }
        assert!(read("Dockerfile").contains("cargo build --locked --release"), "the image is built by another profile");
    }

    #[test]
    fn the_four_chains_have_an_overlay_with_the_profile_s_id_and_name() {
        let profiles: toml::Table = read("config/chains.toml").parse().unwrap();
        let profiles = profiles["chain"].as_array().unwrap();
        assert_eq!(OVERLAYS.keys().collect::<Vec<_>>(), ["base", "cronos", "ethereum", "polygon"]);
        for (chain, objects) in OVERLAYS.iter() {
            let data = &config_map(objects, "chaintap-environment")["data"];
            let id: i64 = data["CHAIN_ID"].as_str().unwrap().parse().unwrap();
            let profile = profiles.iter().find(|profile| profile["id"].as_integer() == Some(id));
            let name = profile.unwrap_or_else(|| panic!("{chain}: no chain {id}"))["name"].as_str().unwrap();
            assert_eq!(data["LAST_PROCESSED_BLOCK_KEY"], name);
            assert!(name.starts_with(chain), "overlay {chain} runs {name}");
        }
    }

    #[test]
    fn two_chains_in_one_namespace_share_no_object_no_pod_and_no_secret() {
        let mut seen = BTreeSet::new();
        for (chain, objects) in OVERLAYS.iter() {
            for object in objects {
                let name = text(object, "/metadata/name");
                assert!(seen.insert((object["kind"].to_string(), name.to_owned())), "{name} is there twice");
            }
            let labels = json!({ "app.kubernetes.io/name": "chaintap", "app.kubernetes.io/instance": chain });
            let deployment = only(objects, "Deployment");
            assert_eq!(deployment["spec"]["selector"]["matchLabels"], labels);
            assert_eq!(deployment["spec"]["template"]["metadata"]["labels"], labels);
            let template = &deployment["spec"]["template"]["spec"];
            assert_eq!(template["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"], labels);
            assert_eq!(only(objects, "Service")["spec"]["selector"], labels);
            assert_eq!(only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels);
            assert_eq!(only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"], labels);

            let secret = format!("chaintap-{chain}");
            let mut secrets: Vec<&Value> =
                members(template, "/volumes").iter().map(|v| &v["secret"]["secretName"]).collect();
            secrets.extend(members(container(objects), "/env").iter().map(|v| &v["valueFrom"]["secretKeyRef"]["name"]));
            secrets.retain(|name| !name.is_null());
            assert_eq!(secrets, [&json!(secret); 2], "the Secret of {chain}");
        }
    }

    #[test]
    fn no_secret_is_applied_and_what_is_secret_is_referred_to() {
        for objects in OVERLAYS.values() {
            assert!(objects.iter().all(|object| object["kind"] != "Secret"));
            let environment = &config_map(objects, "chaintap-environment")["data"];
            for name in environment.as_object().unwrap().keys() {
                assert_is_a_variable(name);
                assert_eq!(variables::find(name).unwrap().secrecy, Secrecy::Open, "{name} in a ConfigMap");
            }
            for entry in members(container(objects), "/env") {
                let name = text(entry, "/name");
                assert_is_a_variable(name);
                if let Some(path) = entry.get("value") {
                    let plain =
                        name.strip_suffix("_FILE").unwrap_or_else(|| panic!("{name} has its value in the open"));
                    assert_eq!(path, &format!("/run/secrets/chaintap/{plain}"));
                }
            }
        }
    }

    #[test]
    fn a_pod_has_no_rights_that_it_does_not_need() {
        for objects in OVERLAYS.values() {
            let pod = &only(objects, "Deployment")["spec"]["template"]["spec"];
            let context = &pod["securityContext"];
            assert_eq!((&context["runAsNonRoot"], &context["runAsUser"]), (&json!(true), &json!(65532)));
            assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
            assert_eq!(pod["automountServiceAccountToken"], false);
            assert_eq!(only(objects, "ServiceAccount")["automountServiceAccountToken"], false);
            assert_eq!(pod["serviceAccountName"], only(objects, "ServiceAccount")["metadata"]["name"]);
            assert_eq!(
                container(objects)["securityContext"],
                json!({
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                })
            );
            let limits = &container(objects)["resources"];
            assert!(limits["limits"]["memory"].is_string() && limits["requests"]["memory"].is_string());
        }
    }

    #[test]
    fn probes_ask_paths_that_the_program_answers_and_a_pod_has_time_to_drain() {
        let served = read("src/api/mod.rs");
        for objects in OVERLAYS.values() {
            let container = container(objects);
            for (probe, path) in
                [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
            {
                assert_eq!(container[probe]["httpGet"], json!({ "path": path, "port": "http" }), "{probe}");
                assert!(served.contains(&format!(".route(\"{path}\"")), "nothing serves {path}");
            }
            let port = variables::find("PORT").unwrap().default;
            assert_eq!(container["ports"][0], json!({ "name": "http", "containerPort": port.parse::<u16>().unwrap() }));
            let grace =
                only(objects, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64();
            assert!(grace.unwrap() >= Limits::default().grace.as_secs() + 10, "{grace:?} s to drain");
        }
    }

    #[test]
    fn replicas_are_replaced_one_at_a_time() {
        for objects in OVERLAYS.values() {
            let spec = &only(objects, "Deployment")["spec"];
            assert_eq!(spec["replicas"], 2);
            assert_eq!(spec["strategy"]["type"], "RollingUpdate");
            assert_eq!(spec["strategy"]["rollingUpdate"]["maxUnavailable"], 1);
            assert_eq!(only(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"], 1);
            assert_eq!(container(objects)["image"], format!("chaintap:{VERSION}"));
            assert_eq!(container(objects)["args"], json!(["run"]));
        }
    }

    #[test]
    fn the_config_maps_hold_the_repository_s_files() {
        for objects in OVERLAYS.values() {
            for (map, folder, end) in [("chaintap-config", "config", ".toml"), ("chaintap-abi", "abi", ".json")] {
                let data = config_map(objects, map)["data"].as_object().unwrap();
                let held: BTreeSet<String> = data.keys().cloned().collect();
                assert_eq!(held, names(folder, end), "add what is new to {folder}/kustomization.yaml");
                for (name, content) in data {
                    assert_eq!(content, &read(format!("{folder}/{name}")));
                }
            }
            let pod = &only(objects, "Deployment")["spec"]["template"]["spec"];
            let volumes: BTreeSet<&str> = members(pod, "/volumes").iter().map(|volume| text(volume, "/name")).collect();
            let mounts = members(container(objects), "/volumeMounts");
            assert_eq!(mounts.iter().map(|mount| text(mount, "/name")).collect::<BTreeSet<_>>(), volumes);
            assert!(mounts.iter().all(|mount| mount["readOnly"] == true));
        }
    }

    #[test]
    fn no_file_of_the_base_is_left_out() {
        let kustomization = yaml("kubernetes/base/kustomization.yaml").remove(0);
        let listed: BTreeSet<&str> =
            members(&kustomization, "/resources").iter().filter_map(|name| name.as_str()).collect();
        let mut there = names("kubernetes/base", ".yaml");
        there.remove("kustomization.yaml");
        assert!(there.iter().all(|name| listed.contains(name.as_str())), "{there:?} against {listed:?}");
    }
}

/// Rights on other systems: what the program does there, and no more.
mod access {
    use std::time::Duration;

    use super::*;
    use crate::support::{
        chaintap::Settings,
        devchain::{Devchain, still},
        redis::RedisServer,
    };

    const REDIS_USERS: &str = "kubernetes/access/redis-users.acl";

    #[test]
    fn the_aws_policy_allows_what_the_program_calls_and_no_more() {
        let policy: Value = serde_json::from_str(&read("kubernetes/access/aws-policy.json")).unwrap();
        let actions: BTreeSet<&str> = members(&policy, "/Statement")
            .into_iter()
            .flat_map(|statement| {
                assert_eq!(statement["Effect"], "Allow");
                assert_ne!(statement["Resource"], "*");
                statement["Action"]
                    .as_str()
                    .into_iter()
                    .chain(members(statement, "/Action").into_iter().filter_map(Value::as_str))
            })
            .collect();
        let expected = ["secretsmanager:GetSecretValue", "sqs:GetQueueAttributes", "sqs:SendMessage"];
        assert_eq!(actions, expected.into());
    }

    /// Upper-case words in quotes behind `before`, in the files of a folder that end so, in lower case.
    fn called(folder: &str, end: &str, before: &str) -> BTreeSet<String> {
        let sources = names(folder, end).into_iter().map(|name| read(format!("{folder}/{name}")));
        let words = sources.flat_map(|source| {
            let split =
                source.split(before).skip(1).filter_map(|rest| rest.split(['"', '\'']).next().map(str::to_lowercase));
            split.collect::<Vec<_>>()
        });
        words.collect()
    }

    #[test]
    fn the_redis_user_may_call_what_the_store_calls_and_no_more() {
        let mut needed = called("src/store/scripts", ".lua", "call('");
        needed.extend(called("src/store/redis", ".rs", "cmd(\""));
        // The client's own: to log in, to choose the database, to run scripts.
        needed.extend(["auth", "select", "eval", "evalsha"].map(ToOwned::to_owned));
        // Asked where they are allowed: how often the AOF is synced, and, from 7.2 on, to wait for it.
        needed.retain(|command| !["config", "waitaof"].contains(&command.as_str()));

        let users = read(REDIS_USERS);
        let words = users.lines().last().unwrap().split_whitespace();
        let allowed: BTreeSet<String> =
            words.filter_map(|word| word.strip_prefix('+')).map(ToOwned::to_owned).collect();
        assert_eq!(allowed, needed);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_listener_needs_no_right_that_the_redis_user_lacks() {
        let chain = Devchain::start(still(40)).await;
        let user = read(REDIS_USERS).lines().last().unwrap().replace("chain:8453:", "chain:31337:");
        let (before, after) = user.split_once('#').unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("users.acl");
        fs::write(&file, format!("{before}>secret{}\n", &after[64..])).unwrap();
        let redis = RedisServer::start_with(&["--aclfile", file.to_str().unwrap(), "--appendonly", "yes"]).await;

        let listener = Settings::default()
            .set("CHAIN_ID", 31337)
            .set("WEB3_PROVIDER", chain.rpc().url)
            .set("REDIS_URL", format!("redis://chaintap-base:secret@127.0.0.1:{}", redis.port))
            .set("START_BLOCK", 10);
        let (code, messages, log) = listener.clone().arg("--until").arg(30).start().end(Duration::from_mins(1)).await;
        assert_eq!(code, 0, "{log}");
        assert!(!messages.is_empty() && !log.contains("NOPERM"), "{log}");
        let (code, printed, error) = listener.output(&["rewind", "--to", "20", "--yes"]).await;
        assert_eq!(code, 0, "{printed}{error}");
    }
}

mod image {
    use super::*;

    /// Instructions with their arguments, continued lines joined.
    fn instructions() -> Vec<(String, String)> {
        let joined = read("Dockerfile").lines().filter(|line| !line.starts_with('#')).fold(
            String::new(),
            |text, line| match line.strip_suffix('\\') {
                Some(begun) => text + begun,
                None => text + line + "\n",
            },
        );
        let split = joined.lines().filter_map(|line| line.split_once(' '));
        split.map(|(name, rest)| (name.to_owned(), rest.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
    }

    /// The last stage's only instruction of this name.
    fn final_instruction(name: &str) -> String {
        let all = instructions();
        let last = all.iter().rposition(|(name, _)| name == "FROM").unwrap();
        let found: Vec<&String> = all[last..].iter().filter(|(found, _)| found == name).map(|(_, rest)| rest).collect();
        assert_eq!(found.len(), 1, "{name} in the last stage: {found:?}");
        found[0].clone()
    }

    #[test]
    fn hadolint_has_nothing_to_say() {
        tool("hadolint", &["Dockerfile"]);
    }

    #[test]
    fn the_last_stage_runs_as_nobody_and_is_ended_and_watched_properly() {
        assert_eq!(final_instruction("USER"), "65532:65532");
        assert_eq!(final_instruction("STOPSIGNAL"), "SIGTERM");
        assert_eq!(final_instruction("EXPOSE"), variables::find("PORT").unwrap().default);
        assert_eq!(final_instruction("ENTRYPOINT"), r#"["/usr/local/bin/chaintap"]"#);
        assert_eq!(final_instruction("CMD"), r#"["run"]"#);
        assert!(final_instruction("HEALTHCHECK").ends_with(r#"CMD ["/usr/local/bin/chaintap", "healthcheck"]"#));
        let data = final_instruction("VOLUME");
        assert_eq!(final_instruction("ENV"), format!("DATA_DIR={data}"));
        assert_is_a_variable("DATA_DIR");
        let final_from = final_instruction("FROM");
        assert!(final_from.contains("/distroless/") && final_from.ends_with(":nonroot"), "{final_from}");
    }

    #[test]
    fn the_allocator_is_built_with_its_settings() {
        let settings: toml::Table = read(".cargo/config.toml").parse().unwrap();
        let settings = settings["env"]["JEMALLOC_SYS_WITH_MALLOC_CONF"].as_str().unwrap();
        let program = fs::read(env!("CARGO_BIN_EXE_chaintap")).unwrap();
        assert!(program.windows(settings.len()).any(|part| part == settings.as_bytes()), "{settings}");
    }

    #[test]
    fn every_base_image_says_which_version_is_meant() {
        for (name, rest) in instructions() {
            if name == "FROM" {
                let image = rest.split(' ').next().unwrap();
                let (_, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("{image} has no tag"));
                assert!(tag != "latest" && image.contains(|c: char| c.is_ascii_digit()), "{image}");
            }
        }
    }

    #[test]
    fn it_is_built_by_the_compiler_that_the_crate_asks_for_and_says_its_version() {
        let from = &instructions().into_iter().find(|(name, _)| name == "FROM").unwrap().1;
        assert!(from.starts_with(&format!("rust:{}-", env!("CARGO_PKG_RUST_VERSION"))), "{from}");
        assert!(instructions().contains(&("ARG".into(), format!("VERSION={VERSION}"))));
        let label = final_instruction("LABEL");
        assert!(label.contains(env!("CARGO_PKG_DESCRIPTION")) && label.contains(env!("CARGO_PKG_LICENSE")), "{label}");
    }

    #[test]
    fn what_is_copied_and_what_is_built_in_reaches_the_builder() {
        let sent: BTreeSet<String> =
            read(".dockerignore").lines().filter_map(|line| line.strip_prefix('!')).map(ToOwned::to_owned).collect();
        let mut copied = BTreeSet::new();
        for (name, rest) in instructions() {
            if name == "COPY" && !rest.starts_with("--from") {
                let words: Vec<&str> = rest.split(' ').collect();
                copied.extend(words[..words.len() - 1].iter().map(|&source| source.to_owned()));
            }
        }
        for source in &copied {
            assert!(root().join(source).exists(), "{source} is copied, and is not there");
            assert!(
                sent.iter().any(|sent| sent == source || sent.strip_suffix('*').is_some_and(|s| source.starts_with(s)))
            );
        }
        for (file, included) in included() {
            let top = included.components().next().unwrap().as_os_str().to_str().unwrap();
            assert!(
                copied.contains(top),
                "{file} includes {}, which the build stage does not copy",
                included.display()
            );
        }
    }

    /// What `include_str!` names in `src/`, tests apart, as paths from the root.
    fn included() -> Vec<(String, PathBuf)> {
        let top = fs::canonicalize(root()).unwrap();
        let mut folders = vec![top.join("src")];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|end| end == "rs") {
                    let source = read(&path);
                    let code = source.split("#[cfg(test)]").next().unwrap();
                    for name in code.split("include_str!(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                        let target = fs::canonicalize(folder.join(name)).unwrap();
                        found.push((path.display().to_string(), target.strip_prefix(&top).unwrap().to_path_buf()));
                    }
                }
            }
        }
        assert!(!found.is_empty(), "nothing is built in; this test looks for what no longer is");
        found
    }
}

mod compose {
    use super::*;

    /// The services, as the specification's own parser has accepted them.
    fn services() -> serde_json::Map<String, Value> {
        const SCRIPT: &str = "
import yaml, compose_spec
spec = compose_spec.PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(open('docker-compose.yml'))))
spec.validate()";
        tool("python", &["-c", SCRIPT]);
        yaml("docker-compose.yml").remove(0)["services"].as_object().unwrap().clone()
    }

    fn ends_by_itself(service: &Value) -> bool {
        service["restart"] == "no"
    }

    #[test]
    fn every_server_names_its_version_and_is_watched() {
        for (name, service) in services() {
            let image = text(&service, "/image");
            let (_, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("{name}: {image} has no tag"));
            assert!(tag != "latest" && tag.contains(|c: char| c.is_ascii_digit()), "{name}: {image}");
            assert_ne!(service.get("healthcheck").is_some(), ends_by_itself(&service), "{name}");
            if image.starts_with("chaintap:") {
                assert_eq!(tag, VERSION);
            }
        }
    }

    #[test]
    fn nothing_starts_before_what_it_needs() {
        let services = services();
        for (name, service) in &services {
            for (needed, how) in service["depends_on"].as_object().into_iter().flatten() {
                let needed_service =
                    services.get(needed).unwrap_or_else(|| panic!("{name} needs {needed}, which is not there"));
                let expected =
                    if ends_by_itself(needed_service) { "service_completed_successfully" } else { "service_healthy" };
                assert_eq!(how["condition"], expected, "{name} → {needed}");
            }
        }
        let needed: Vec<&String> = services["chaintap"]["depends_on"].as_object().unwrap().keys().collect();
        assert_eq!(needed, ["redis", "node", "tokens", "queue"]);
        assert_eq!(services["chaintap"]["depends_on"], services["replica"]["depends_on"]);
    }

    #[test]
    fn nothing_has_rights_that_it_does_not_need_or_listens_to_the_world() {
        for (name, service) in services() {
            assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]), "{name}");
            assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
            assert!(service["read_only"] == true || name == "mongo", "{name} may write");
            for port in members(&service, "/ports") {
                assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {port}");
            }
        }
    }

    #[test]
    fn the_listener_is_given_variables_that_it_knows_and_time_to_drain() {
        for (name, service) in services().iter().filter(|(_, service)| text(service, "/image").starts_with("chaintap:"))
        {
            for variable in service["environment"].as_object().unwrap().keys() {
                assert_is_a_variable(variable);
            }
            if !ends_by_itself(service) {
                let grace: u64 = text(service, "/stop_grace_period").strip_suffix('s').unwrap().parse().unwrap();
                assert!(grace >= Limits::default().grace.as_secs() + 10, "{name}: {grace} s to drain");
            }
        }
    }

    #[test]
    fn redis_keeps_everything_it_is_told() {
        let command = services()["redis"]["command"].to_string();
        assert!(
            command.contains(r#""--appendonly","yes""#) && command.contains(r#""--maxmemory-policy","noeviction""#)
        );
    }
}

mod commands {
    use super::*;

    #[test]
    fn shellcheck_has_nothing_to_say() {
        tool("shellcheck", &[".ci/run", "tests/support/install.sh", "tests/support/dev.sh"]);
    }

    #[test]
    fn make_help_names_every_target() {
        let makefile = read("Makefile");
        let output = Command::new("make").current_dir(root()).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let targets: Vec<&str> = makefile.lines().filter_map(|line| line.strip_prefix(".PHONY: ")).collect();
        assert!(targets.len() > 5, "{targets:?}");
        for target in targets {
            assert!(help.contains(&format!("make {target} ")), "{target} has no line in `make help`:\n{help}");
        }
    }

    /// What containers, probes and `make` call must be what the program understands.
    #[test]
    fn the_program_knows_the_commands_that_are_called() {
        for command in [&["run"][..], &["healthcheck"], &["tokens", "import"]] {
            let output = Command::new(env!("CARGO_BIN_EXE_chaintap")).args(command).arg("--help").output().unwrap();
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
