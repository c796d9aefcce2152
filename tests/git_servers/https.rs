//! A web server with TLS and passwords before `git http-backend`, by https://.

use std::fs;
use std::path::PathBuf;

use crate::bed::{Bed, NAME, done, on_its_own_host, prepared, wait};
use crate::server::Server;

/// A name and a key for a server, in one file.
fn certificate(bed: &Bed, file: &str) -> PathBuf {
    let path = bed.path(file);
    let mut openssl = bed.command("openssl");
    openssl.args(["req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=stead", "-addext"]);
    openssl.arg(format!("subjectAltName=DNS:{NAME}")).arg("-keyout").arg(&path).arg("-out").arg(&path);
    done(openssl.args(["-addext", "basicConstraints=critical,CA:true"]));
    path
}

/// Serves /git to everybody, and /private to those who know the password.
pub fn web_server(bed: &Bed, port: u16, certificate: &str) -> Server {
    fs::write(bed.path("passwords"), "ann:right\n").unwrap();
    let config = format!(
        r#"
server.modules = ("mod_auth", "mod_authn_file", "mod_alias", "mod_setenv", "mod_cgi", "mod_openssl")
server.bind = "127.0.0.1"
server.port = {port}
server.document-root = "{folder}"
ssl.engine = "enable"
ssl.pemfile = "{folder}/{certificate}"
alias.url = ("/git" => "{backend}", "/private" => "{backend}")
cgi.assign = ("" => "")
setenv.add-environment = ("GIT_PROJECT_ROOT" => "{folder}", "GIT_HTTP_EXPORT_ALL" => "")
auth.backend = "plain"
auth.backend.plain.userfile = "{folder}/passwords"
auth.require = ("/private" => ("method" => "basic", "realm" => "fleet", "require" => "valid-user"))
"#,
        folder = bed.path("").display(),
        backend = done(bed.command("git").arg("--exec-path")) + "/git-http-backend",
    );
    let file = bed.path("lighttpd.conf");
    fs::write(&file, config).unwrap();
    let mut command = bed.server(prepared("servers/usr/sbin/lighttpd"));
    command.env("LD_LIBRARY_PATH", prepared("servers/usr/lib/x86_64-linux-gnu"));
    // One connection, on its input.
    command.arg("-1").arg("-m").arg(prepared("servers/usr/lib/lighttpd")).arg("-f").arg(file);
    Server::of(port, command)
}

/// One that is trusted, by the user's settings.
pub fn trusted(bed: &Bed, port: u16) -> Server {
    let file = certificate(bed, "certificate");
    bed.set_up("http.sslCAInfo", &file.display().to_string());
    web_server(bed, port, "certificate")
}

#[test]
fn a_repository_on_the_web_is_followed_and_stays_as_it_was_whatever_goes_wrong() {
    on_its_own_host(|bed| {
        let url = format!("https://{NAME}/git/fleet.git");
        bed.follow(&url, "");
        let server = trusted(bed, 443);
        bed.follows(&bed.push("web"));
        bed.follows(&bed.push("db"));

        bed.follow(&format!("https://{NAME}/git/other.git"), "");
        bed.stays_since("FetchFailed", "not found");
        bed.follow("https://gone.example/git/fleet.git", "");
        bed.stays_since("FetchFailed", "gone.example");
        bed.follow(&url, "");
        drop(server);
        bed.stays_since("FetchFailed", "443");
        let server = web_server(bed, 443, "certificate");
        let commit = bed.push("cache");
        let stalls = Server::stalling(8443, 443, 100);
        bed.follow(&format!("https://{NAME}:8443/git/fleet.git"), ", timeout: 1s");
        bed.stays("TimedOut");
        drop(stalls);
        bed.follow(&url, "");
        bed.follows(&commit);
        drop(server);
    });
}

#[test]
fn a_web_server_that_hangs_in_the_middle_of_a_pack_is_not_waited_for() {
    on_its_own_host(|bed| {
        let _server = trusted(bed, 443);
        bed.is_not_held_up_in_a_pack(443, 8443, "2s", |port, more| {
            bed.follow(&format!("https://{NAME}:{port}/git/fleet.git"), more);
        });
    });
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_no_server_of_ours() {
    on_its_own_host(|bed| {
        let url = format!("https://{NAME}/git/fleet.git");
        bed.follow(&url, "");
        let server = trusted(bed, 443);
        bed.follows(&bed.push("web"));
        let commit = bed.push("db");
        // A good certificate for another name than it is asked by.
        bed.follow("https://localhost/git/fleet.git", "");
        bed.stays_since("FetchFailed", "certificate");
        bed.follow(&url, "");
        drop(server);
        // Somebody else under our server's name.
        certificate(bed, "another");
        let server = web_server(bed, 443, "another");
        bed.stays_since("FetchFailed", "certificate");
        drop(server);

        // Those that are trusted may also be named in the environment.
        let _server = web_server(bed, 443, "certificate");
        done(bed.command("git").args(["config", "--global", "--unset", "http.sslCAInfo"]));
        bed.stays_since("FetchFailed", "certificate");
        let file = bed.path("certificate").display().to_string();
        bed.follows_with(&[("GIT_SSL_CAINFO", &file)], &commit);
    });
}

#[test]
fn a_password_is_taken_from_a_helper_of_the_users_and_nobody_is_ever_asked_for_one() {
    on_its_own_host(|bed| {
        let url = format!("https://{NAME}/private/fleet.git");
        let _server = trusted(bed, 443);
        bed.push("web");
        // That a question would be seen, by what a person sees.
        let line = format!("git -c core.askPass= -c credential.helper= ls-remote {url}");
        let mut asks = bed.on_a_terminal(&line).env_remove("SSH_ASKPASS").spawn().unwrap();
        let (mut seen, mut screen) = (String::new(), asks.stdout.take().unwrap());
        wait("the question", || {
            let mut bytes = [0; 256];
            let read = std::io::Read::read(&mut screen, &mut bytes).unwrap();
            seen += &String::from_utf8_lossy(&bytes[..read]);
            seen.contains("Username for").then_some(())
        });
        drop(asks.stdin.take());
        asks.kill().unwrap();
        asks.wait().unwrap();

        let store = bed.home().join(".git-credentials");
        let knows = |password: &str| fs::write(&store, format!("https://ann:{password}@{NAME}\n")).unwrap();
        bed.set_up("credential.helper", "store");
        knows("right");
        bed.follow(&url, "");
        bed.follows(&bed.push("db"));
        let commit = bed.push("cache");
        knows("wrong");
        bed.stays_since("FetchFailed", "Authentication failed");
        // git has the helper forget what did not help.
        assert_eq!(fs::read_to_string(&store).unwrap(), "");
        bed.stays("FetchFailed");

        bed.follow(&url.replace("git.example", "ann:wr0ng@git.example"), "");
        let message = bed.stays("FetchFailed");
        assert!(message.contains("Authentication failed") && !message.contains("wr0ng"), "{message}");
        let shown = bed.stead(&["sources", "fleet"]).output().unwrap();
        assert!(!String::from_utf8_lossy(&shown.stdout).contains("wr0ng"));
        bed.follow(&url.replace("git.example", "ann:right@git.example"), "");
        bed.follows(&commit);
    });
}
