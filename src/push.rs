//! Git sources that are asked at once, because a git server's hook says that there is something new.
//!
//! ```text
//! POST /sync         every git source
//! POST /sync/NAME    this one
//! Authorization: Bearer TOKEN
//! ```
//!
//! It is answered as soon as the question is noted: a hook that waits holds up a push. Nothing of a request decides anything but
//! which sources are asked; what they say then comes into force as ever.

mod token;

pub use token::TokenError;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};
use tokio::sync::Notify;

use crate::desired::SourceName;
use crate::http::{self, Address, Answer, Client, Request, Service};
use token::Token;

/// How long it is from one line in the log about refused requests to the next.
const REFUSALS_PAUSE: Duration = Duration::from_secs(60);

/// Where a git server's hook can tell of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Where stead listens.
    pub listen: Address,
    /// The file of the token that a request must carry.
    pub token_file: PathBuf,
}

impl Push {
    /// Whether there is a token to tell friends from strangers by.
    ///
    /// # Errors
    /// What is wrong with its file.
    pub fn check(&self) -> Result<(), TokenError> {
        Token::read(&self.token_file).map(drop)
    }
}

/// Why nobody can be listened to.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// There is no token to tell friends from strangers by.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Nothing can be heard there.
    #[error("cannot listen for pushes on {address}")]
    Listen {
        /// The address.
        address: Address,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A server that is at work until it is dropped.
pub struct Server {
    asked: Arc<Asked>,
    _http: http::Server,
}

impl Server {
    /// Listens to those who have one of these sources asked.
    ///
    /// # Errors
    /// Where there is no fit token yet, or the address is in use.
    pub fn start(push: &Push, sources: BTreeSet<SourceName>) -> Result<Self, PushError> {
        Token::read(&push.token_file)?;
        let asked = Arc::new(Asked::default());
        let endpoint = Endpoint::new(push.token_file.clone(), sources, Arc::clone(&asked));
        let serve = || http::serve(http::bind(&push.listen)?, "push", endpoint);
        let http = serve().map_err(|source| PushError::Listen { address: push.listen.clone(), source })?;
        Ok(Self { asked, _http: http })
    }

    /// The sources that are to be asked now; waits until there are some. May be dropped and called again.
    pub async fn next(&self) -> BTreeSet<SourceName> {
        self.asked.next().await
    }

    /// From now on everybody is told to ask later.
    pub fn refuse(&self) {
        self.asked.close();
    }
}

/// What somebody has asked for and nobody has seen to yet. However often it is asked for, it is there once.
struct Asked {
    /// `None` when nobody will see to it any more.
    sources: Mutex<Option<BTreeSet<SourceName>>>,
    news: Notify,
}

impl Default for Asked {
    fn default() -> Self {
        Self { sources: Mutex::new(Some(BTreeSet::new())), news: Notify::new() }
    }
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, Option<BTreeSet<SourceName>>> {
        // A panic while it was held left whole names in it.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that these are to be asked; false when nobody will.
    fn add(&self, names: BTreeSet<SourceName>) -> bool {
        match &mut *self.lock() {
            Some(sources) => sources.extend(names),
            None => return false,
        }
        self.news.notify_one();
        true
    }

    async fn next(&self) -> BTreeSet<SourceName> {
        loop {
            let names = self.lock().as_mut().map(std::mem::take).unwrap_or_default();
            if !names.is_empty() {
                return names;
            }
            self.news.notified().await;
        }
    }

    fn close(&self) {
        *self.lock() = None;
    }
}

/// What answers.
struct Endpoint {
    token_file: PathBuf,
    sources: BTreeSet<SourceName>,
    asked: Arc<Asked>,
    refusals: Mutex<Refusals>,
}

impl Endpoint {
    fn new(token_file: PathBuf, sources: BTreeSet<SourceName>, asked: Arc<Asked>) -> Self {
        Self { token_file, sources, asked, refusals: Mutex::default() }
    }

    fn respond(&self, request: &Request) -> Answer {
        // Before anything else is told: a stranger learns of no source and of no path.
        if let Err(refusal) = self.admit(request) {
            self.tell_of_refusal(request.client, &refusal);
            return refusal.answer();
        }
        if request.is_too_long {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "the body is not read, so send none");
        }
        let names = match self.wanted(request.head.uri.path()) {
            Ok(names) => names,
            Err(why) => return text(StatusCode::NOT_FOUND, &why),
        };
        if request.head.method != Method::POST {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "a sync is asked for by POST");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return answer;
        }
        let told = names.iter().map(|name| name.0.as_str()).collect::<Vec<_>>().join(", ");
        if !self.asked.add(names) {
            return text(StatusCode::SERVICE_UNAVAILABLE, "stead is stopping; it asks every source when it is back");
        }
        tracing::debug!(client = %request.client, "a push: {told} will be asked");
        text(StatusCode::ACCEPTED, &format!("will be asked now: {told}"))
    }

    /// Whether a request carries the token. That is read anew each time, so that it can be replaced; on a thread that nobody
    /// but such requests waits for.
    fn admit(&self, request: &Request) -> Result<(), Refusal> {
        let mut all = request.head.headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (all.next(), all.next()) else { return Err(Refusal::NoToken) };
        let offered = bearer(value.as_bytes()).ok_or(Refusal::NoToken)?;
        let token = Token::read(&self.token_file).map_err(Refusal::Unreadable)?;
        if token.is(offered) { Ok(()) } else { Err(Refusal::WrongToken) }
    }

    /// The sources that a path stands for.
    fn wanted(&self, path: &str) -> Result<BTreeSet<SourceName>, String> {
        let name = match path.strip_prefix("/sync") {
            Some("") if self.sources.is_empty() => return Err("there is no git source".to_owned()),
            Some("") => return Ok(self.sources.clone()),
            rest => rest.and_then(|rest| rest.strip_prefix('/')),
        };
        let name = name.ok_or("there is /sync, and /sync/NAME for one source")?;
        let known = self.sources.get(&SourceName(name.to_owned())).cloned();
        known.map(|name| [name].into()).ok_or_else(|| format!("there is no git source named {name:?}"))
    }

    /// Tells of those who were refused, in a line a minute however many there are.
    fn tell_of_refusal(&self, client: Client, refusal: &Refusal) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(untold) = refusals.count(Instant::now()) {
            let why = refusal.why();
            tracing::warn!(%client, untold, "a request to sync was refused: {why}");
        }
    }
}

impl Service for Endpoint {
    async fn answer(&self, request: Request) -> Answer {
        self.respond(&request)
    }
}

/// Why somebody is told nothing.
enum Refusal {
    NoToken,
    WrongToken,
    Unreadable(TokenError),
}

impl Refusal {
    /// For the log.
    fn why(&self) -> String {
        match self {
            Self::NoToken => "it carries no token".to_owned(),
            Self::WrongToken => "its token is wrong".to_owned(),
            Self::Unreadable(error) => error.to_string(),
        }
    }

    /// For whoever it is: what is wrong here is for the log alone.
    fn answer(&self) -> Answer {
        // RFC 6750, section 3: no error code for who brought no token.
        let (challenge, told) = match self {
            Self::NoToken => ("Bearer realm=\"stead\"", "a token is asked for: Authorization: Bearer TOKEN"),
            Self::WrongToken | Self::Unreadable(_) => {
                ("Bearer realm=\"stead\", error=\"invalid_token\"", "the token is not the one that is asked for")
            }
        };
        let mut answer = text(StatusCode::UNAUTHORIZED, told);
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        answer
    }
}

/// The token in the value of an Authorization header (RFC 6750, section 2.1). The scheme is of either case (RFC 9110, 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| rest.trim_ascii())
}

/// Refused requests, so that many of them do not fill the log.
#[derive(Default)]
struct Refusals {
    told_at: Option<Instant>,
    untold: u64,
}

impl Refusals {
    /// Takes in one more. If it is time to tell of it: how many came since the last that was told of.
    fn count(&mut self, now: Instant) -> Option<u64> {
        if self.told_at.is_some_and(|told_at| now.saturating_duration_since(told_at) < REFUSALS_PAUSE) {
            self.untold += 1;
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

/// A line of text.
fn text(status: StatusCode, line: &str) -> Answer {
    let mut answer = Answer::new(format!("{line}\n"));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[cfg(test)]
mod tests;
