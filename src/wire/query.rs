//! A query: header, one question, perhaps EDNS.

use thiserror::Error;

use super::{Edns, HEADER_LEN, Header, Name, NameError, u16_at};

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

/// What is asked.
#[derive(Clone)]
pub struct Question {
    /// The name in lower case.
    pub name: Name,
    /// Type asked for.
    pub qtype: u16,
    /// Class asked for.
    pub qclass: u16,
    /// Where the question ends in the message: header and question are `message[..end]`.
    pub end: usize,
}

impl Question {
    /// Reads the one question of a message. Its octets are `message[HEADER_LEN..end]`.
    #[inline]
    pub fn parse(message: &[u8], header: &Header) -> Result<Question, Malformed> {
        if header.questions != 1 {
            return Err(Malformed::QuestionCount);
        }
        let name = Name::parse(message, HEADER_LEN)?;
        let at = HEADER_LEN + name.wire_len();
        let qtype = u16_at(message, at).ok_or(Malformed::Question)?;
        let qclass = u16_at(message, at + 2).ok_or(Malformed::Question)?;
        Ok(Question { name, qtype, qclass, end: at + 4 })
    }
}

/// A parsed query.
#[derive(Clone)]
pub struct Query {
    /// As received.
    pub header: Header,
    /// What is asked.
    pub question: Question,
    /// What the client says about itself, if it speaks EDNS.
    pub edns: Option<Edns>,
}

impl Query {
    /// Reads a whole query. Octets after the last counted record are ignored, as other servers do.
    ///
    /// # Errors
    /// [`Malformed`], to be answered FORMERR.
    pub fn parse(message: &[u8], header: Header) -> Result<Query, Malformed> {
        let question = Question::parse(message, &header)?;
        let edns = Edns::parse(message, &header, question.end)?;
        Ok(Query { header, question, edns })
    }
}
