//! A query: header, one question and optional EDNS.

use thiserror::Error;

use super::{Edns, HEADER_LEN, Header, Name, NameError};

/// The reason why a message with a complete header is not a valid query; the reply is FORMERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// No question, or several: RFC 9619 allows exactly one.
    #[error("the query does not have exactly one question")]
    QuestionCount,
    /// The question's name is invalid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The message ended before the question's type and class.
    #[error("the query ends before the question's type and class")]
    Question,
    /// A record after the question is malformed.
    #[error("the records after the question are malformed")]
    Records,
    /// More than one OPT record (RFC 6891 section 6.1.1).
    #[error("the query has more than one OPT record")]
    DuplicateOpt,
}

/// A question without its name, which is read into a separate [`Name`].
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Query type.
    pub qtype: u16,
    /// Query class.
    pub qclass: u16,
    /// Offset of the end of the question: header and question are `message[..end]`.
    pub end: usize,
}

impl Question {
    /// Parses the only question of a message and reads its name into `name`. Its octets are `message[HEADER_LEN..end]`.
    ///
    /// # Errors
    /// [`Malformed`], for which the reply is FORMERR.
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
    /// The question.
    pub question: Question,
    /// The client's EDNS parameters, if the query has an OPT record.
    pub edns: Option<Edns>,
}

impl Query {
    /// Parses a whole query and reads the question's name into `name`. Octets after the last counted record are
    /// ignored, as in other servers.
    ///
    /// # Errors
    /// [`Malformed`], for which the reply is FORMERR.
    #[inline(always)]
    pub fn parse(message: &[u8], header: Header, name: &mut Name) -> Result<Query, Malformed> {
        let question = Question::parse(message, header, name)?;
        let edns = Edns::parse(message, header, question.end)?;
        Ok(Query { question, edns })
    }
}
