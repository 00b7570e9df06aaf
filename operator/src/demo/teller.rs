//! Tells the demo's story in a terminal or a log, and remembers whether it happened as told.

use std::{
    fmt,
    io::{self, Write},
    time::{Duration, Instant},
};

/// One thing the story claimed, and whether it held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// The claim.
    pub(crate) claim: String,
    /// Whether it held.
    pub(crate) held: bool,
}

/// Writes acts and what was seen in them.
///
/// A reader who went away (a closed pipe) does not stop the story: its lines are lost, its facts are kept.
pub(crate) struct Teller<W> {
    out: W,
    style: Style,
    started: Instant,
    acts: u32,
    told: Vec<Told>,
}

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Colours, for a person at a terminal.
    Terminal,
    /// Plain lines that begin with the seconds since the start, for a log.
    Plain,
}

impl Style {
    /// Colours if standard output may have them and nobody asked for plain lines.
    pub(crate) fn of_stdout(no_tty: bool) -> Self {
        if no_tty || !crate::coloured(&io::stdout()) { Style::Plain } else { Style::Terminal }
    }
}

#[derive(Clone, Copy)]
enum Ink {
    Title,
    Good,
    Bad,
    Quiet,
    Text,
}

impl Ink {
    /// The SGR parameters (ECMA-48, 8.3.117).
    fn code(self) -> &'static str {
        match self {
            Ink::Title => "1;36",
            Ink::Good => "32",
            Ink::Bad => "1;31",
            Ink::Quiet => "2",
            Ink::Text => "0",
        }
    }
}

impl<W: Write> Teller<W> {
    /// Starts the clock of the story.
    pub(crate) fn new(out: W, style: Style) -> Self {
        Teller { out, style, started: Instant::now(), acts: 0, told: Vec::new() }
    }

    /// The next act begins.
    pub(crate) fn act(&mut self, title: &str) {
        self.acts += 1;
        let number = self.acts;
        self.line(Ink::Text, "");
        self.line(Ink::Title, &format!("{number}. {title}"));
    }

    /// What happens, or what to know.
    pub(crate) fn say(&mut self, text: impl fmt::Display) {
        self.line(Ink::Text, &format!("   {text}"));
    }

    /// A detail, or a command to try.
    pub(crate) fn aside(&mut self, text: impl fmt::Display) {
        self.line(Ink::Quiet, &format!("     {text}"));
    }

    /// A claim of the story with what was seen; the story is true only if every claim held.
    pub(crate) fn claim(&mut self, held: bool, claim: impl fmt::Display, seen: impl fmt::Display) {
        let (mark, ink) = if held { ('✓', Ink::Good) } else { ('✗', Ink::Bad) };
        let seen = seen.to_string();
        let seen = if seen.is_empty() { seen } else { format!(": {seen}") };
        self.line(ink, &format!(" {mark} {claim}{seen}"));
        self.told.push(Told { claim: claim.to_string(), held });
    }

    /// The claims that did not hold.
    pub(crate) fn broken(&self) -> impl Iterator<Item = &Told> {
        self.told.iter().filter(|told| !told.held)
    }

    /// Whether something was claimed and all of it held.
    pub(crate) fn all_held(&self) -> bool {
        !self.told.is_empty() && self.broken().next().is_none()
    }

    /// The time since the story began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn line(&mut self, ink: Ink, text: &str) {
        let written = match self.style {
            Style::Terminal if text.is_empty() => writeln!(self.out),
            Style::Terminal => writeln!(self.out, "\x1b[{}m{text}\x1b[0m", ink.code()),
            Style::Plain if text.is_empty() => writeln!(self.out),
            Style::Plain => writeln!(self.out, "[{:6.1}s] {text}", self.started.elapsed().as_secs_f64()),
        };
        // Lost on purpose: see the type's documentation.
        let _ = written.and_then(|()| self.out.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(style: Style, tell: impl FnOnce(&mut Teller<&mut Vec<u8>>)) -> String {
        let mut out = Vec::new();
        tell(&mut Teller::new(&mut out, style));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_log_has_no_escapes_and_a_terminal_has() {
        let story = |teller: &mut Teller<&mut Vec<u8>>| {
            teller.act("Calls");
            teller.claim(true, "every edge is encrypted", "3 of 3");
        };
        let plain = told(Style::Plain, story);
        assert!(!plain.contains('\x1b'), "{plain:?}");
        assert!(plain.ends_with("s]  ✓ every edge is encrypted: 3 of 3\n"), "{plain:?}");
        assert!(told(Style::Terminal, story).contains("\x1b[32m"));
    }

    #[test]
    fn the_story_is_true_only_if_every_claim_held() {
        told(Style::Plain, |teller| {
            assert!(!teller.all_held(), "a story that claimed nothing proves nothing");
            teller.claim(true, "a", "");
            assert!(teller.all_held());
            teller.claim(false, "b", "");
            teller.claim(true, "c", "");
            assert!(!teller.all_held());
            assert_eq!(teller.broken().map(|told| told.claim.as_str()).collect::<Vec<_>>(), ["b"]);
        });
    }

    #[test]
    fn a_closed_pipe_does_not_stop_the_story() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut teller = Teller::new(Closed, Style::Plain);
        teller.claim(true, "a", "");
        assert!(teller.all_held());
    }
}
