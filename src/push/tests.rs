use super::*;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

const TOKEN: &str = "0123456789abcdef";

struct Bed {
    folder: tempfile::TempDir,
    server: Server,
}

impl Bed {
    fn new(sources: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_token(folder.path(), TOKEN);
        let server = Server::start(&push(folder.path()), names(sources)).unwrap();
        Self { folder, server }
    }

    /// What is answered to a request with these lines of headers.
    fn ask(&self, first: &str, headers: &str) -> String {
        let mut client = UnixStream::connect(self.folder.path().join("push.sock")).unwrap();
        write!(client, "{first} HTTP/1.1\r\nHost: here\r\n{headers}\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    fn post(&self, path: &str) -> String {
        self.ask(&format!("POST {path}"), &format!("Authorization: Bearer {TOKEN}\r\n"))
    }

    /// What is to be asked now, if anything.
    fn asked(&self) -> BTreeSet<SourceName> {
        self.server.asked.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }
}

fn push(folder: &std::path::Path) -> Push {
    Push { listen: Address::Socket(folder.join("push.sock")), token_file: folder.join("token") }
}

fn names(names: &[&str]) -> BTreeSet<SourceName> {
    names.iter().map(|name| SourceName((*name).to_owned())).collect()
}

fn write_token(folder: &std::path::Path, token: &str) {
    #[expect(clippy::disallowed_methods, reason = "as a user would")]
    std::fs::write(folder.join("token"), token).unwrap();
    std::fs::set_permissions(folder.join("token"), std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn status(answer: &str) -> u16 {
    answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or_default()
}

#[test]
fn who_knows_the_token_has_one_source_asked_or_all() {
    let bed = Bed::new(&["edge", "fleet"]);
    let answer = bed.post("/sync");
    assert!(status(&answer) == 202 && answer.ends_with("will be asked now: edge, fleet\n"), "{answer}");
    assert_eq!(bed.asked(), names(&["edge", "fleet"]));
    let answer = bed.ask("POST /sync/fleet?ref=main", &format!("authorization: bearer   {TOKEN} \r\n"));
    assert!(status(&answer) == 202 && answer.ends_with("will be asked now: fleet\n"), "{answer}");
    assert_eq!(bed.asked(), names(&["fleet"]));
    // With a body, as webhooks have one.
    let headers = format!("Authorization: Bearer {TOKEN}\r\nContent-Length: 0\r\nContent-Type: application/json\r\n");
    assert_eq!(status(&bed.ask("POST /sync/edge", &headers)), 202);
    assert_eq!(bed.asked(), names(&["edge"]));
}

#[test]
fn a_stranger_is_told_the_same_whatever_it_asks() {
    let bed = Bed::new(&["fleet"]);
    let requests = ["POST /sync", "POST /sync/fleet", "POST /sync/other", "GET /sync", "DELETE /", "POST *"];
    for (headers, challenge) in [
        (String::new(), "Bearer realm=\"stead\"\r\n"),
        (format!("Authorization: Basic {TOKEN}\r\n"), "Bearer realm=\"stead\"\r\n"),
        (format!("Authorization: {TOKEN}\r\n"), "Bearer realm=\"stead\"\r\n"),
        (format!("Authorization: Bearer {TOKEN}\r\n").repeat(2), "Bearer realm=\"stead\"\r\n"),
        (format!("Authorization: Bearer {TOKEN}0\r\n"), "error=\"invalid_token\""),
        ("Authorization: Bearer 0123456789abcdeX\r\n".to_owned(), "error=\"invalid_token\""),
        ("Authorization: Bearer \r\nContent-Length: 70000\r\n".to_owned(), "Bearer realm=\"stead\""),
    ] {
        let answers: BTreeSet<String> = requests
            .iter()
            .map(|first| {
                let answer = bed.ask(first, &headers);
                answer.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\r\n")
            })
            .collect();
        assert_eq!(answers.len(), 1, "{answers:#?}");
        let answer = answers.first().unwrap();
        assert!(status(answer) == 401 && answer.contains("www-authenticate") && answer.contains(challenge), "{answer}");
        assert!(!answer.contains("fleet") && !answer.contains("/sync"), "{answer}");
    }
    assert_eq!(bed.asked(), names(&[]));
}

#[test]
fn what_makes_no_sense_is_told_to_who_knows_the_token() {
    let bed = Bed::new(&["fleet"]);
    for (path, told) in [
        ("/sync/other", "\"other\""),
        ("/sync/", "\"\""),
        ("/sync/fleet/", "\"fleet/\""),
        ("/sync/../fleet", "\"../fleet\""),
        ("/syncfleet", "/sync/NAME"),
        ("/", "/sync/NAME"),
    ] {
        let answer = bed.post(path);
        assert!(status(&answer) == 404 && answer.contains(told), "{path}: {answer}");
    }
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    for method in ["GET", "PUT", "HEAD", "OPTIONS", "post"] {
        let answer = bed.ask(&format!("{method} /sync"), &token);
        assert!(status(&answer) == 405 && answer.contains("allow: POST\r\n"), "{method}: {answer}");
    }
    assert_eq!(status(&bed.ask("POST /sync", &format!("{token}Content-Length: 65537\r\n"))), 413);
    assert_eq!(bed.asked(), names(&[]));
    assert!(Bed::new(&[]).post("/sync").ends_with("there is no git source\n"));
}

#[test]
fn the_token_is_the_one_that_its_file_holds_now() {
    let bed = Bed::new(&["fleet"]);
    write_token(bed.folder.path(), "another-token-of-the-day\n");
    assert_eq!(status(&bed.post("/sync")), 401);
    let answer = bed.ask("POST /sync", "Authorization: Bearer another-token-of-the-day\r\n");
    assert_eq!(status(&answer), 202);
    // Who brought the right one is told no more than who did not: what is wrong here is for the log.
    std::fs::set_permissions(bed.folder.path().join("token"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = bed.ask("POST /sync", "Authorization: Bearer another-token-of-the-day\r\n");
    assert!(status(&open) == 401 && !open.contains("mode"), "{open}");
    std::fs::remove_file(bed.folder.path().join("token")).unwrap();
    assert_eq!(status(&bed.post("/sync")), 401);
}

#[tokio::test]
async fn a_flood_is_one_question_and_none_is_lost() {
    let bed = Bed::new(&["edge", "fleet"]);
    for _ in 0..200 {
        assert_eq!(status(&bed.post("/sync/fleet")), 202);
    }
    assert_eq!(bed.server.next().await, names(&["fleet"]));
    assert_eq!(bed.asked(), names(&[]));
    // Who waits when it comes, and gave up waiting before.
    let given_up = tokio::time::timeout(Duration::from_millis(20), bed.server.next()).await;
    assert!(given_up.is_err());
    let waiting = bed.server.next();
    let (next, answer) = tokio::join!(waiting, async { bed.post("/sync/edge") });
    assert_eq!((next, status(&answer)), (names(&["edge"]), 202));
}

#[test]
fn a_stead_that_is_stopping_says_so() {
    let bed = Bed::new(&["fleet"]);
    bed.server.refuse();
    let answer = bed.post("/sync");
    assert!(status(&answer) == 503 && answer.ends_with("when it is back\n"), "{answer}");
    assert_eq!(status(&bed.ask("POST /sync", "")), 401);
}

#[test]
fn without_a_fit_token_nobody_is_listened_to() {
    let folder = tempfile::tempdir().unwrap();
    let start = || Server::start(&push(folder.path()), names(&["fleet"])).map(drop);
    assert!(matches!(start(), Err(PushError::Token(_))));
    write_token(folder.path(), "short");
    assert!(matches!(start(), Err(PushError::Token(_))));
    assert!(!folder.path().join("push.sock").exists());
    write_token(folder.path(), TOKEN);
    start().unwrap();
    assert!(!folder.path().join("push.sock").exists(), "it went with the server");
    std::fs::create_dir(folder.path().join("push.sock")).unwrap();
    assert!(matches!(start(), Err(PushError::Listen { .. })));
}

#[test]
fn refusals_are_told_of_once_a_minute_with_how_many_there_were() {
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let mut refusals = Refusals::default();
    assert_eq!(refusals.count(at(0)), Some(0));
    assert_eq!([1, 30, 59].map(|second| refusals.count(at(second))), [None; 3]);
    assert_eq!(refusals.count(at(60)), Some(3));
    assert_eq!(refusals.count(at(119)), None);
    assert_eq!(refusals.count(at(600)), Some(1));
}
