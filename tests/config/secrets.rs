//! A secret planted anywhere is seen nowhere.

use std::fs;

use chaintap::config::variables::{self, Secrecy};

use super::{CANARY, Directory, everything_said, settings, sources};

/// The canary in every secret, valid and broken, through every layer.
#[test]
fn no_secret_is_ever_shown() {
    let valid = [
        (
            "WEB3_PROVIDER",
            format!("wss://{CANARY}@a.example/{CANARY},https://{CANARY}.base.quiknode.pro/{CANARY}?k={CANARY}"),
        ),
        ("REDIS_URL", format!("redis://u:{CANARY}@r.example")),
        ("MONGODB_URI", format!("mongodb://u:{CANARY}@m.example:1,n.example:2/db?x={CANARY}")),
        ("SENTRY_DSN", format!("https://{CANARY}@s.example/1")),
        ("AWS_ACCESS_KEY_ID", CANARY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", CANARY.to_owned()),
        ("AWS_SESSION_TOKEN", CANARY.to_owned()),
    ];
    let shown = {
        let given: Vec<(&str, &str)> = valid.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let settings = settings(&given);
        let names: Vec<&str> = settings.providers.iter().map(|provider| provider.name.as_str()).collect();
        format!("{settings:?} {settings:#?} {} {names:?}", settings.registry.summary(None))
    };
    assert!(!shown.to_lowercase().contains(&CANARY.to_lowercase()), "{shown}");

    let broken = [
        "{}",
        "x://{}",
        "https://u:{}/x@h",
        "http://[{}",
        "{}://{}",
        "redis://h/{}",
        "mongodb://{}:x@",
        "https://h:{}",
    ];
    for variable in variables::all().filter(|variable| variable.secrecy != Secrecy::Open) {
        for pattern in broken {
            let value = pattern.replace("{}", CANARY);
            let in_environment = sources(&[(variable.name, &value)]);
            let file = format!("port = 'x'\n{} = '{value}'\nunknown = '{value}'\n", variable.name.to_lowercase());
            let unclosed = format!("{} = '{value}\n", variable.name.to_lowercase());
            let with_file = |text: &str| {
                let directory = Directory::with("default.toml", text);
                fs::write(directory.path(".env"), format!("{} {value}\n", variable.name)).unwrap();
                let mut sources = directory.sources(&[(variable.name, "")]);
                sources.dotenv = Some(directory.path(".env"));
                everything_said(&sources)
            };
            for said in [everything_said(&in_environment), with_file(&file), with_file(&unclosed)] {
                assert!(!said.to_lowercase().contains(&CANARY.to_lowercase()), "{}={pattern}: {said}", variable.name);
            }
        }
    }
}
