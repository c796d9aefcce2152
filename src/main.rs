//! Temporary.
use std::sync::Arc;
use std::time::Duration;
use stead::config::{Access, QemuAccel, Settings, StateLock, open_state};
use stead::plan::{AllowPrune, Policy};
use stead::reconcile::{OnceOptions, Stead, once, run};
fn env(name: &str, d: &str) -> String {
    std::env::var(name).unwrap_or(d.into())
}
fn dur(name: &str, d: &str) -> Duration {
    stead::config::parse_duration(&env(name, d)).unwrap()
}
fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let args: Vec<String> = std::env::args().collect();
    let settings = Settings {
        manifests: env("STEAD_MANIFESTS", "").into(),
        state_dir: env("STEAD_STATE_DIR", "").into(),
        run_dir: env("STEAD_RUN_DIR", "").into(),
        firecracker: env("STEAD_FIRECRACKER", "firecracker").into(),
        qemu: "qemu-system-x86_64".into(),
        qemu_accel: QemuAccel::Tcg,
        parallel: 16,
        api_timeout: dur("STEAD_API_TIMEOUT", "2s"),
        resync: Duration::from_secs(600),
        log_limit: 4 << 20,
        policy: Policy {
            prune_delay: dur("STEAD_PRUNE_DELAY", "3s"),
            backoff_initial: dur("STEAD_BACKOFF_INITIAL", "1s"),
            ..Policy::default()
        },
    };
    let layout = open_state(&settings, Access::Actor).unwrap();
    let host = stead::host::linux::LinuxHost::new(stead::host::linux::LinuxHostConfig {
        firecracker: Some(settings.firecracker.clone()),
        qemu: None,
    })
    .unwrap();
    let stead = Stead { settings, layout, host: Arc::new(host) };
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if args[1] == "get" {
        let o = stead::reconcile::look(&stead, None).unwrap();
        println!("{o:#?}");
        for n in o.vms.keys() {
            println!("{}", std::fs::read_to_string(stead.layout.status(n)).unwrap_or_default());
        }
        return;
    }
    let _lock = match StateLock::take(&stead.layout, &args[1]) {
        Ok(l) => l,
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(75)
        }
    };
    if args[1] == "run" {
        let term = async {
            let mut s = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
            s.recv().await;
        };
        rt.block_on(run(stead, term)).unwrap();
    } else {
        let o = rt
            .block_on(once(
                &stead,
                &OnceOptions { timeout: Duration::from_secs(60), allow_prune: AllowPrune(0), only: None },
                &mut |p| eprintln!("{p:?}"),
            ))
            .unwrap();
        eprintln!("{}", stead::plan::show::text(&o.plan, false));
        let held = o.plan.vms.values().any(|v| v.holds.iter().any(|h| !h.is_at_rest()));
        std::process::exit(if !o.failures.is_empty() || held || o.timed_out { 2 } else { 0 });
    }
}
