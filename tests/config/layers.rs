//! Where values come from, and the real AWS call.

use std::{fs, time::Duration};

use chaintap::config::{Invalid, Problem, Settings, Sources, load, load_offline};
use tokio::process::Command;

use super::{CANARY, Directory, mistakes, owned, sources, support};

#[tokio::test]
async fn a_later_layer_wins() {
    let directory = Directory::with("default.toml", "");
    let mounted = directory.path("mounted");
    let mut sources = directory.sources(&[]);
    let service = |sources: &Sources| load_offline(sources).unwrap_or_else(|invalid| panic!("{invalid}")).service;
    assert_eq!(service(&sources), "base_mainnet");

    fs::write(directory.path("config/default.toml"), "last_processed_block_key = 'from_file'").unwrap();
    assert_eq!(service(&sources), "from_file");

    let server = SecretsManager::start().await;
    server.put("layers", r#"{ "LAST_PROCESSED_BLOCK_KEY": "from_secret" }"#).await;
    sources.environment.extend(server.environment("layers"));
    assert_eq!(load(&sources).await.unwrap().service, "from_secret");

    fs::write(directory.path(".env"), "LAST_PROCESSED_BLOCK_KEY='from_dotenv'\n").unwrap();
    sources.dotenv = Some(directory.path(".env"));
    assert_eq!(load(&sources).await.unwrap().service, "from_dotenv");

    fs::write(&mounted, "from_mounted_file\n").unwrap();
    sources.environment.insert("LAST_PROCESSED_BLOCK_KEY_FILE".into(), mounted.display().to_string());
    assert_eq!(load(&sources).await.unwrap().service, "from_mounted_file");

    sources.environment.remove("LAST_PROCESSED_BLOCK_KEY_FILE");
    sources.environment.insert("LAST_PROCESSED_BLOCK_KEY".into(), "from_environment".into());
    assert_eq!(load(&sources).await.unwrap().service, "from_environment");

    sources.flags.insert("LAST_PROCESSED_BLOCK_KEY", "from_flag".into());
    let loaded = load(&sources).await.unwrap();
    assert_eq!(loaded.service, "from_flag");
    let shown = loaded.given.iter().find(|row| row[0] == "LAST_PROCESSED_BLOCK_KEY").unwrap();
    assert_eq!(shown[2], "--last-processed-block-key");

    sources.flags.clear();
    sources.environment.insert("LAST_PROCESSED_BLOCK_KEY".into(), String::new());
    assert_eq!(load(&sources).await.unwrap().service, "from_dotenv", "an empty value counts as absent");
}

#[test]
fn a_mounted_file_loses_one_newline_and_both_forms_are_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("provider");
    fs::write(&path, "https://rpc.example.com/mounted\n").unwrap();
    let mut given = sources(&[("WEB3_PROVIDER_FILE", path.to_str().unwrap())]);
    assert_eq!(
        mistakes(&given),
        ["environment: WEB3_PROVIDER and WEB3_PROVIDER_FILE are both set; remove one of them"]
    );
    given.environment.remove("WEB3_PROVIDER");
    assert_eq!(
        load_offline(&given).unwrap().providers[0].urls().next().unwrap().expose(),
        "https://rpc.example.com/mounted"
    );
    fs::remove_file(&path).unwrap();
    let missing = mistakes(&given);
    assert!(missing[0].contains("WEB3_PROVIDER_FILE names a file that cannot be read"), "{missing:?}");
}

#[tokio::test]
async fn an_aws_secret_gives_known_variables_and_its_mistakes_are_told() {
    let server = SecretsManager::start().await;
    let with = |secret: &str| {
        let mut given = sources(&[("WEB3_PROVIDER", "")]);
        given.environment.extend(server.environment(secret));
        given
    };
    server.put("good", &format!(r#"{{ "WEB3_PROVIDER": "https://rpc.example.com/{CANARY}", "PORT": 3005 }}"#)).await;
    let settings = load(&with("good")).await.unwrap_or_else(|invalid| panic!("{invalid}"));
    assert_eq!(settings.providers[0].urls().next().unwrap().expose(), format!("https://rpc.example.com/{CANARY}"));
    assert_eq!(settings.http.port(), 3005);
    assert!(settings.given.iter().any(|row| row[0] == "WEB3_PROVIDER" && row[2] == "AWS secret good"));

    server.put("misspelt", &format!(r#"{{ "WEB3_PROVIDERS": "{CANARY}", "PORT": "x" }}"#)).await;
    let found = problems(load(&with("misspelt")).await);
    assert_eq!(found[0], "AWS secret misspelt: unknown key 'WEB3_PROVIDERS'; did you mean 'WEB3_PROVIDER'?");
    assert!(
        found.iter().any(|line| line == "AWS secret misspelt: PORT is not a port: 'x'; write a number up to 65535")
    );

    server.put("broken", &format!(r#"{{ "WEB3_PROVIDER": {CANARY} }}"#)).await;
    for (secret, expected) in [
        ("broken", "AWS secret broken: the secret is not a JSON object (line 1, column 20)"),
        ("absent", "AWS secret absent: Secrets Manager refused: ResourceNotFoundException"),
    ] {
        let found = problems(load(&with(secret)).await);
        assert!(found[0].starts_with(expected), "{found:?}");
        assert!(found.iter().all(|line| !line.contains(CANARY)), "{found:?}");
    }
    let mut unreachable = with("good");
    let nobody = format!("http://127.0.0.1:{}", support::process::free_port());
    unreachable.environment.insert("AWS_ENDPOINT_URL".into(), nobody);
    let found = problems(load(&unreachable).await);
    assert!(found[0].starts_with("AWS secret good: Secrets Manager cannot be asked"), "{found:?}");
}

fn problems(loaded: Result<Settings, Invalid>) -> Vec<String> {
    loaded.unwrap_err().problems.iter().map(Problem::line).collect()
}

/// moto, serving Secrets Manager.
struct SecretsManager {
    endpoint: String,
    _server: tokio::process::Child,
}

impl SecretsManager {
    async fn start() -> Self {
        let port = support::process::free_port();
        let mut command = Command::new(support::process::dev_dir().join("venv/bin/moto_server"));
        let server = support::process::spawn(command.args(["-H", "127.0.0.1", "-p", &port.to_string()]));
        let endpoint = format!("http://127.0.0.1:{port}");
        let started = Self { endpoint, _server: server };
        support::process::eventually("moto answers", Duration::from_mins(1), || async {
            started.try_put("ready", "{}").await
        })
        .await;
        started
    }

    fn environment(&self, secret: &str) -> Vec<(String, String)> {
        [
            ("AWS_SECRET_NAME", secret),
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", "testtesttesttest"),
            ("AWS_SECRET_ACCESS_KEY", CANARY),
        ]
        .map(owned)
        .into()
    }

    async fn put(&self, name: &str, text: &str) {
        assert!(self.try_put(name, text).await, "moto refused the secret");
    }

    async fn try_put(&self, name: &str, text: &str) -> bool {
        let sources = Sources { environment: self.environment(name).into_iter().collect(), ..sources(&[]) };
        let mut given = self::sources(&[]);
        given.environment.extend(sources.environment);
        given.environment.remove("AWS_SECRET_NAME");
        let aws = load_offline(&given).unwrap().aws;
        let client = aws_sdk_secretsmanager::Client::new(&chaintap::config::aws::sdk_config(&aws).await);
        client.create_secret().name(name).secret_string(text).send().await.is_ok()
    }
}
