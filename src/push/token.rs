//! The secret that a request must carry.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use subtle::ConstantTimeEq;

/// The fewest bytes of a token: 128 bits, if they are random.
const TOKEN_MIN: usize = 16;
/// The most bytes of a token.
const TOKEN_MAX: usize = 1024;

/// Why a file holds no fit token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("the token file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It does not keep a secret, or holds none.
    #[error("the token file {} {why}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
}

/// A secret. Never shown.
pub(super) struct Token {
    /// Filled up with zeros, so that comparing it takes as long whatever its length.
    bytes: [u8; TOKEN_MAX],
}

impl Token {
    /// Reads the token that a file holds now.
    pub(super) fn read(path: &Path) -> Result<Self, TokenError> {
        let failed = |source: io::Error| TokenError::Io { path: path.to_owned(), source };
        let unfit = |why: String| TokenError::Unfit { path: path.to_owned(), why };
        // Opening a FIFO must not wait for its writer.
        let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path);
        let file = match file {
            Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
                return Err(unfit("is a symbolic link; name the file itself".to_owned()));
            }
            file => file.map_err(failed)?,
        };
        if let Some(why) = exposure(&file.metadata().map_err(failed)?) {
            return Err(unfit(why));
        }
        let mut content = Vec::with_capacity(TOKEN_MAX + 2);
        file.take(TOKEN_MAX as u64 + 2).read_to_end(&mut content).map_err(failed)?;
        Self::new(content.strip_suffix(b"\n").unwrap_or(&content)).map_err(unfit)
    }

    fn new(token: &[u8]) -> Result<Self, String> {
        let length = token.len();
        if !(TOKEN_MIN..=TOKEN_MAX).contains(&length) {
            let are = if length > TOKEN_MAX { "more".to_owned() } else { format!("only {length}") };
            return Err(format!(
                "must hold {TOKEN_MIN} to {TOKEN_MAX} bytes, and there are {are}: `openssl rand -hex 32` makes a good one"
            ));
        }
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err("must hold one line of letters, digits and signs: no header carries anything else".to_owned());
        }
        Ok(Self { bytes: padded(token).unwrap_or([0; TOKEN_MAX]) })
    }

    /// Whether this is what somebody offers. How long that takes says nothing of the token, nor of its length.
    pub(super) fn is(&self, offered: &[u8]) -> bool {
        // No token has a zero in it, so two that are filled up to the same are the same.
        padded(offered).is_some_and(|offered| self.bytes.ct_eq(&offered).into())
    }
}

/// A text filled up with zeros; `None` if it is longer than any token, or has zeros of its own.
fn padded(text: &[u8]) -> Option<[u8; TOKEN_MAX]> {
    let mut bytes = [0; TOKEN_MAX];
    bytes.get_mut(..text.len())?.copy_from_slice(text);
    (!text.contains(&0)).then_some(bytes)
}

/// Who else may know or set what is in a file, if so.
fn exposure(metadata: &std::fs::Metadata) -> Option<String> {
    let (mode, owner, own) = (metadata.mode() & 0o7777, metadata.uid(), nix::unistd::geteuid().as_raw());
    if !metadata.is_file() {
        Some("is not a regular file".to_owned())
    } else if owner != 0 && owner != own {
        Some(format!("belongs to user {owner}: chown it to root, or to user {own} as whom stead runs"))
    } else if mode & 0o077 != 0 {
        Some(format!("has mode {mode:04o}, so others may use it: put a new token in it, and chmod it to 0600"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct File(tempfile::TempDir);

    impl File {
        fn path(&self) -> PathBuf {
            self.0.path().join("token")
        }

        fn holds(content: &[u8], mode: u32) -> Self {
            let file = Self(tempfile::tempdir().unwrap());
            #[expect(clippy::disallowed_methods, reason = "as a user would")]
            std::fs::write(file.path(), content).unwrap();
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            file
        }

        fn error(&self) -> String {
            match Token::read(&self.path()) {
                Ok(_) => panic!("a token"),
                Err(error) => error.to_string(),
            }
        }
    }

    #[test]
    fn a_token_is_all_of_its_file_but_a_newline_at_the_end() {
        for content in ["0123456789abcdef\n", "0123456789abcdef"] {
            let token = Token::read(&File::holds(content.as_bytes(), 0o600).path()).unwrap();
            assert!(token.is(b"0123456789abcdef"));
            for wrong in ["", "0123456789abcde", "0123456789abcdef\n", "0123456789abcdef\0", "0123456789abcdeg"] {
                assert!(!token.is(wrong.as_bytes()), "{wrong:?}");
            }
            assert!(!token.is(&[b'0'; 5000]));
        }
        let longest = [b'x'; TOKEN_MAX];
        assert!(Token::read(&File::holds(&[&longest[..], b"\n"].concat(), 0o400).path()).unwrap().is(&longest));
    }

    #[test]
    fn what_is_no_good_token_is_told_and_not_taken() {
        for (content, why) in [
            (&b""[..], "only 0"),
            (b"0123456789abcde\n", "only 15"),
            (b"0123456789abcdef\n\n", "one line"),
            (b"0123456789abcdef\r\n", "one line"),
            (b"0123456789 abcdef\n", "one line"),
            (b"0123456789abcdef\0", "one line"),
            ("0123456789abcdefä".as_bytes(), "one line"),
            (&[b'x'; TOKEN_MAX + 1], "more"),
            (&[b'x'; TOKEN_MAX * 9], "more"),
        ] {
            let error = File::holds(content, 0o600).error();
            assert!(error.contains(why) && !error.contains("0123"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_may_use_or_that_is_none_is_not_taken() {
        for mode in [0o604, 0o640, 0o602, 0o620, 0o610, 0o601] {
            let error = File::holds(b"0123456789abcdef", mode).error();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
        }
        let file = File::holds(b"0123456789abcdef", 0o600);
        let link = file.0.path().join("link");
        std::os::unix::fs::symlink(file.path(), &link).unwrap();
        assert!(Token::read(&link).is_err_and(|error| error.to_string().contains("symbolic link")));
        let fifo = file.0.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Token::read(&fifo).is_err_and(|error| error.to_string().contains("not a regular file")));
        assert!(Token::read(file.0.path()).is_err());
        assert!(Token::read(&file.0.path().join("none")).is_err_and(|error| error.to_string().contains("none")));
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(file.path(), Some(12345), None).unwrap();
            assert!(file.error().contains("user 12345"));
        }
    }
}
