//! The flags that every command takes, each with its `STEAD_*` variable.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{CliError, ColorChoice};
use crate::config::{
    Configured, DEFAULT_PARALLEL, Environment, QemuAccel, Settings, Source, default_starting, parse_bytes,
    parse_duration, read_configuration,
};
use crate::plan::Policy;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Flags {
    /// File that says where manifests come from [default: /etc/stead/config.yaml as root, else in XDG_CONFIG_HOME]
    #[arg(long, env = "STEAD_CONFIG", hide_env_values = true, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Folder of manifests, whatever the configuration says [default: /etc/stead/manifests as root, else in XDG_CONFIG_HOME]
    #[arg(long, env = "STEAD_MANIFESTS", hide_env_values = true, global = true, value_name = "DIR")]
    manifests: Option<PathBuf>,

    /// Folder of durable state [default: /var/lib/stead as root, else in XDG_STATE_HOME]
    #[arg(long, env = "STEAD_STATE_DIR", hide_env_values = true, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Folder of sockets [default: /run/stead as root, else in XDG_RUNTIME_DIR]
    #[arg(long, env = "STEAD_RUN_DIR", hide_env_values = true, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,

    /// When to use colours; NO_COLOR is obeyed
    #[arg(
        long,
        env = "STEAD_COLOR",
        hide_env_values = true,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN"
    )]
    pub(super) color: ColorChoice,

    /// Firecracker's program
    #[arg(
        long,
        env = "STEAD_FIRECRACKER",
        hide_env_values = true,
        global = true,
        value_name = "PROGRAM",
        default_value = "firecracker"
    )]
    #[arg(hide_short_help = true)]
    firecracker: PathBuf,

    /// QEMU's program
    #[arg(
        long,
        env = "STEAD_QEMU",
        hide_env_values = true,
        global = true,
        value_name = "PROGRAM",
        default_value = "qemu-system-x86_64"
    )]
    #[arg(hide_short_help = true)]
    qemu: PathBuf,

    /// How QEMU runs guests: with KVM, without (tcg), or as the host allows
    #[arg(
        long,
        env = "STEAD_QEMU_ACCEL",
        hide_env_values = true,
        global = true,
        value_enum,
        default_value_t,
        value_name = "HOW"
    )]
    #[arg(hide_short_help = true)]
    qemu_accel: QemuAccel,

    /// How many VMs are worked on at once
    #[arg(long, env = "STEAD_PARALLEL", hide_env_values = true, global = true, value_name = "N", default_value_t = DEFAULT_PARALLEL)]
    #[arg(hide_short_help = true, value_parser = clap::value_parser!(u16).range(1..=4096))]
    parallel: u16,

    /// How many VMs may be starting at once [default: 8 for each CPU]
    #[arg(long, env = "STEAD_PARALLEL_STARTS", hide_env_values = true, global = true, value_name = "N")]
    #[arg(hide_short_help = true, value_parser = clap::value_parser!(u16).range(1..=4096))]
    parallel_starts: Option<u16>,

    /// How long a VMM's API may take to answer
    #[arg(long, env = "STEAD_API_TIMEOUT", hide_env_values = true, global = true, value_name = "TIME", value_parser = parse_duration)]
    #[arg(hide_short_help = true, default_value = "2s")]
    api_timeout: Duration,

    /// How often everything is looked at again, as a net under all events
    #[arg(long, env = "STEAD_RESYNC", hide_env_values = true, global = true, value_name = "TIME", value_parser = parse_duration)]
    #[arg(hide_short_help = true, default_value = "10m")]
    resync: Duration,

    /// How long a manifest must be missing before its VM counts as deleted
    #[arg(long, env = "STEAD_PRUNE_DELAY", hide_env_values = true, global = true, value_name = "TIME", value_parser = parse_duration)]
    #[arg(hide_short_help = true, default_value = "3s")]
    prune_delay: Duration,

    /// How long a VMM may take until its guest runs
    #[arg(long, env = "STEAD_START_TIMEOUT", hide_env_values = true, global = true, value_name = "TIME", value_parser = parse_duration)]
    #[arg(hide_short_help = true, default_value = "30s")]
    start_timeout: Duration,

    /// The wait after a VM's first failure; it doubles with each further one
    #[arg(long, env = "STEAD_BACKOFF_INITIAL", hide_env_values = true, global = true, value_name = "TIME", value_parser = parse_duration)]
    #[arg(hide_short_help = true, default_value = "1s")]
    backoff_initial: Duration,

    /// The longest wait between two starts
    #[arg(long, env = "STEAD_BACKOFF_MAX", hide_env_values = true, global = true, value_name = "TIME", value_parser = parse_duration)]
    #[arg(hide_short_help = true, default_value = "5m")]
    backoff_max: Duration,

    /// How long a VM must run for its earlier failures to be forgotten
    #[arg(long, env = "STEAD_STABLE_TIME", hide_env_values = true, global = true, value_name = "TIME", value_parser = parse_duration)]
    #[arg(hide_short_help = true, default_value = "10m")]
    stable_time: Duration,

    /// How long a kernel object must be seen with nothing to account for it before it is freed
    #[arg(long, env = "STEAD_ORPHAN_AGE", hide_env_values = true, global = true, value_name = "TIME", value_parser = parse_duration)]
    #[arg(hide_short_help = true, default_value = "5m")]
    orphan_age: Duration,

    /// How large a console or VMM log may grow before its older half is dropped
    #[arg(long, env = "STEAD_LOG_LIMIT", hide_env_values = true, global = true, value_name = "SIZE", value_parser = parse_bytes)]
    #[arg(hide_short_help = true, default_value = "4Mi")]
    log_limit: u64,

    /// How stead's own log lines look
    #[arg(
        long,
        env = "STEAD_LOG_FORMAT",
        hide_env_values = true,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    #[arg(hide_short_help = true)]
    pub log_format: LogFormat,

    /// What stead logs: error, warn, info, debug, trace, or a filter [default: info for run, else error]
    #[arg(
        long,
        env = "STEAD_LOG",
        hide_env_values = true,
        global = true,
        value_name = "LEVEL",
        hide_short_help = true
    )]
    pub log_level: Option<String>,
}

impl Flags {
    /// What was set, with what holds otherwise.
    pub(super) fn settings(&self, environment: &Environment) -> Result<Settings, CliError> {
        self.settings_by(self.configuration(environment)?, environment)
    }

    /// The same as if the configuration file said this.
    pub(super) fn settings_by(&self, configured: Configured, environment: &Environment) -> Result<Settings, CliError> {
        let homeless = |flag: &str| CliError::Setting {
            message: format!("there is no default for --{flag}: HOME is not set"),
            hint: format!("set HOME, or --{flag}"),
        };
        let state_dir = self.state_dir.clone().or_else(|| environment.default_state_dir());
        let state_dir = state_dir.ok_or_else(|| homeless("state-dir"))?;
        let run_dir = self.run_dir.clone().unwrap_or_else(|| environment.default_run_dir(&state_dir));
        Ok(Settings {
            host: Arc::new(environment.host(&configured)),
            metrics: configured.metrics.clone(),
            push: configured.push.filter(|_| self.manifests.is_none()),
            sources: self.sources(configured.sources, environment).ok_or_else(|| homeless("manifests"))?,
            run_dir,
            state_dir,
            firecracker: self.firecracker.clone(),
            qemu: self.qemu.clone(),
            qemu_accel: self.qemu_accel,
            parallel: usize::from(self.parallel),
            starting: self.parallel_starts.map_or_else(default_starting, usize::from),
            api_timeout: self.api_timeout,
            resync: self.resync,
            log_limit: self.log_limit,
            policy: Policy {
                start_timeout: self.start_timeout,
                backoff_initial: self.backoff_initial,
                backoff_max: self.backoff_max,
                stable_time: self.stable_time,
                prune_delay: self.prune_delay,
                orphan_min_age: self.orphan_age,
                ..Policy::default()
            },
        })
    }
}

impl Flags {
    /// What the configuration says, if there is one.
    fn configuration(&self, environment: &Environment) -> Result<Configured, CliError> {
        let default = environment.default_configuration();
        let Some(file) = self.config.as_ref().or(default.as_ref()) else { return Ok(Configured::default()) };
        match read_configuration(file)? {
            Some(configured) => Ok(configured),
            None if self.config.is_some() => Err(CliError::Setting {
                message: format!("there is no {}", file.display()),
                hint: "leave --config out, or name the file that is there".to_owned(),
            }),
            None => Ok(Configured::default()),
        }
    }

    /// Where manifests come from: the folder that was named, else what the configuration says, else the usual folder.
    fn sources(&self, configured: Vec<Source>, environment: &Environment) -> Option<Vec<Source>> {
        if self.manifests.is_none() && !configured.is_empty() {
            return Some(configured);
        }
        let folder = self.manifests.clone().or_else(|| environment.default_manifests())?;
        Some(vec![Source::manifests(folder)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::test_settings;
    use crate::config::{DEFAULT_LOG_LIMIT, DEFAULT_RESYNC};
    use std::path::Path;

    #[test]
    fn the_defaults_that_help_shows_are_those_of_the_rooms_that_use_them() {
        let settings = test_settings(Path::new("/home/u"));
        assert_eq!(settings.policy, Policy::default());
        assert_eq!(settings.resync, DEFAULT_RESYNC);
        assert_eq!(settings.log_limit, DEFAULT_LOG_LIMIT);
        assert_eq!(settings.parallel, usize::from(DEFAULT_PARALLEL));
    }
}
