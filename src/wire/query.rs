//! A query: header, one question, perhaps EDNS.

use thiserror::Error;

use super::{Edns, HEADER_LEN, Header, Name, NameError};

/// Why a message with a whole header is no query that can be answered: FORMERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// None or several: RFC 9619 allows exactly one.
    #[error("a query has exactly one question")]
    QuestionCount,
    /// The question's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The message ended before the question's type and class.
    #[error("the question has no type and class")]
    Question,
    /// The records after the question.
    #[error("the records after the question are damaged")]
    Records,
    /// RFC 6891 section 6.1.1.
    #[error("a query has at most one OPT record")]
    TwoOpts,
}

/// What is asked, but for the name, which is read into a place of its own.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Type asked for.
    pub qtype: u16,
    /// Class asked for.
    pub qclass: u16,
    /// Where the question ends in the message: header and question are `message[..end]`.
    pub end: usize,
}

impl Question {
    /// Reads the one question of a message, its name into `name`. Its octets are `message[HEADER_LEN..end]`.
    ///
    /// # Errors
    /// [`Malformed`], to be answered FORMERR.
    #[inline(always)]
    pub fn parse(message: &[u8], header: Header, name: &mut Name) -> Result<Question, Malformed> {
        if header.questions != 1 {
            return Err(Malformed::QuestionCount);
        }
        name.read(message, HEADER_LEN)?;
        let at = HEADER_LEN + name.wire_len();
        let Some(&[t0, t1, c0, c1]) = message.get(at..).and_then(|rest| rest.first_chunk()) else {
            return Err(Malformed::Question);
        };
        Ok(Question { qtype: u16::from_be_bytes([t0, t1]), qclass: u16::from_be_bytes([c0, c1]), end: at + 4 })
    }
}

/// A parsed query.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// What is asked.
    pub question: Question,
    /// What the client says about itself, if it speaks EDNS.
    pub edns: Option<Edns>,
}

impl Query {
    /// Reads a whole query, the name of its question into `name`. Octets after the last counted record are ignored, as
    /// other servers do.
    ///
    /// # Errors
    /// [`Malformed`], to be answered FORMERR.
    #[inline(always)]
    pub fn parse(message: &[u8], header: Header, name: &mut Name) -> Result<Query, Malformed> {
        let question = Question::parse(message, header, name)?;
        let edns = Edns::parse(message, header, question.end)?;
        Ok(Query { question, edns })
    }
}
