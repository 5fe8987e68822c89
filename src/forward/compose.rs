//! Answers assembled from several sources: CNAME chains that cross between the zone and upstreams, and the remaining
//! domains of a search list. They are rare, so this module works on parsed records rather than on bytes.

use std::rc::Rc;

use hickory_net::proto::op::{Message, ResponseCode};
use hickory_net::proto::rr::{Name as RecordName, RData, Record, rdata};
use hickory_net::proto::serialize::binary::{BinDecodable, BinDecoder};

use tokio::time::{Instant, timeout_at};

use super::budget::Waiting;
use super::cache::CacheLookup;
use super::engine::Engine;
use super::reply::{Entry, Freshness, Ttls, wire_name};
use super::{ClientQuery, key_flags_of};
use crate::answer::{ForwardReason, Limit, Scratch, Verdict, answer};
use crate::resolve::{NoTrace, Node, Outcome, resolve};
use crate::wire::{HEADER_LEN, MAX_NAME, Name, extended_error, flags, rcode, rtype};
use crate::zone::{Caller, LazyCaller};

/// Maximum number of sources of one answer.
const MAX_SOURCES: usize = 8;

/// The parts of the answer collected so far.
#[derive(Default)]
struct Found {
    answers: Vec<Record>,
    authorities: Vec<Record>,
    rcode: u16,
    errors: Vec<u8>,
}

/// The zone's answer for one name.
enum TableAnswer {
    /// A reply and, if its CNAME chain leaves the cluster, the target to follow.
    Message(Message, Option<Vec<u8>>),
    /// The name belongs to upstreams.
    Outside,
    /// Neither the zone nor an upstream answers for this name.
    NoAnswer,
}

/// The answer cannot be completed now; the client gets SERVFAIL.
struct Failed;

impl Engine {
    /// Composes an answer and replies to the client, with SERVFAIL if it is incomplete at `deadline`.
    pub(super) async fn compose(self: Rc<Self>, question: Waiting, deadline: Instant) {
        let assembled = timeout_at(deadline, self.assembled(&question)).await.unwrap_or(Err(Failed));
        let entry = match assembled {
            Ok(Some(found)) => found.entry(&question),
            Ok(None) => return self.reply_from_zone(question),
            Err(Failed) => None,
        };
        let authoritative = question.request.reason != ForwardReason::Outside && entry.is_some();
        let entry = entry.unwrap_or_else(|| Entry::failure(&extended_error::NO_REACHABLE_AUTHORITY, 0, 0));
        self.reply(question, &entry, Freshness::Fresh(0), authoritative);
    }

    /// Collects all parts; `None` if no candidate of the search list exists, so that the zone alone answers.
    async fn assembled(self: &Rc<Self>, question: &ClientQuery) -> Result<Option<Found>, Failed> {
        let name = Name::parse(&question.query, HEADER_LEN).map_err(|_| Failed)?;
        let mut found = Found::default();
        if question.request.reason != ForwardReason::Search {
            self.gather(name.wire().to_vec(), question, &mut found).await?;
            return Ok(Some(found));
        }
        let Some(place) = self.first_existing(question, &name).await? else { return Ok(None) };
        found.alias(&name, &place, self.ttl());
        self.gather(place, question, &mut found).await?;
        // The search chose this candidate because it exists, so the answer is NODATA at worst, for every type.
        if found.rcode == rcode::NXDOMAIN {
            found.rcode = rcode::NOERROR;
        }
        Ok(Some(found))
    }

    /// Follows a name's CNAME chain through the zone and upstreams.
    async fn gather(
        self: &Rc<Self>,
        mut name: Vec<u8>,
        question: &ClientQuery,
        found: &mut Found,
    ) -> Result<(), Failed> {
        for place in 0..MAX_SOURCES {
            let next = match self.answer_from_zone(&name, question, place == 0) {
                TableAnswer::Message(message, leads_to) => {
                    found.take(message);
                    leads_to
                }
                TableAnswer::NoAnswer => None,
                TableAnswer::Outside => self.asked(&name, question, found).await?,
            };
            match next {
                Some(next) => name = next,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Adds an upstream's records for a name; returns the CNAME target inside the cluster, if there is one.
    async fn asked(
        self: &Rc<Self>,
        name: &[u8],
        question: &ClientQuery,
        found: &mut Found,
    ) -> Result<Option<Vec<u8>>, Failed> {
        let key = CacheLookup::new(name, question.request.qtype, key_flags_of(&question.request)).key();
        let sent = key.question();
        let (entry, freshness) = self.lookup(key, question.from).await.ok_or(Failed)?;
        let mut message = Message::from_vec(&entry.message(&sent)).map_err(|_| Failed)?;
        found.rcode = entry.rcode;
        found.errors = match freshness {
            Freshness::Fresh(_) => entry.errors().to_vec(),
            _ => extended_error::STALE_ANSWER.to_vec(),
        };
        for record in message.answers.iter_mut().chain(&mut message.authorities) {
            record.ttl = match freshness {
                Freshness::Fresh(age) => record.ttl.saturating_sub(age),
                _ => super::reply::STALE_TTL,
            };
        }
        if !entry.leads_in {
            found.answers.append(&mut message.answers);
            found.authorities = message.authorities;
            return Ok(None);
        }
        // If the chain leads into the cluster, only its CNAMEs come from the upstream: the zone answers the rest.
        let mut current = record_name(name).ok_or(Failed)?;
        for _ in 0..message.answers.len() {
            let alias = message.answers.iter().find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == current => Some((record.clone(), target.0.clone())),
                _ => None,
            });
            let Some((record, target)) = alias else { break };
            found.answers.push(record);
            current = target;
            let wire = wire_name(&current).ok_or(Failed)?;
            if Name::parse(&wire, 0).is_ok_and(|name| self.is_ours(&name)) {
                return Ok(Some(wire));
            }
        }
        Err(Failed)
    }

    /// Returns the zone's answer for a name, as this client may see it. Only the `first` name may be a short one: CNAME
    /// targets are fully qualified.
    fn answer_from_zone(&self, name: &[u8], question: &ClientQuery, first: bool) -> TableAnswer {
        let zone = self.table.load();
        let query = query(name, question.request.qtype);
        let mut buffer = self.buffer.borrow_mut();
        let caller = Caller::Address(question.from);
        let mut whole = Scratch::new(self.turn());
        let mut verdict = answer(&zone, caller, &query, Limit::Stream, &mut whole, &mut buffer);
        let leads_out = match verdict {
            Verdict::Forward(request) if request.reason == ForwardReason::Outside => return TableAnswer::Outside,
            Verdict::Forward(request) => {
                let mut alone = Scratch::zone_only(self.turn());
                verdict = answer(&zone, caller, &query, Limit::Stream, &mut alone, &mut buffer);
                request.reason == ForwardReason::LeadsOut
            }
            _ => false,
        };
        let ours = first || Name::parse(name, 0).is_ok_and(|name| self.is_ours(&name));
        match verdict {
            Verdict::Reply { len, .. } if ours => match buffer.get(..len).map(Message::from_vec) {
                Some(Ok(message)) => {
                    let last = message.answers.iter().rev().find_map(|record| match &record.data {
                        RData::CNAME(target) => wire_name(&target.0),
                        _ => None,
                    });
                    TableAnswer::Message(message, last.filter(|_| leads_out))
                }
                _ => TableAnswer::NoAnswer,
            },
            _ => TableAnswer::NoAnswer,
        }
    }

    /// Completes the search list for `NAME.C.svc.Z`, which does not exist. Returns the first name that exists among
    /// `NAME.svc.Z`, `NAME.Z`, `NAME` in the hosts' search domains, and `NAME` itself. Existence is checked with the
    /// same query for every type, so that A and AAAA always lead to the same name.
    async fn first_existing(self: &Rc<Self>, question: &ClientQuery, name: &Name) -> Result<Option<Vec<u8>>, Failed> {
        let (domain, search) = {
            let zone = self.table.load();
            let domains = &zone.settings.domains;
            let domain = domains.iter().find(|domain| name.below(&domain.wire, domain.labels).is_some());
            (domain.cloned().ok_or(Failed)?, &self.search)
        };
        let labels = name.labels() - domain.labels - 2;
        let own = name.span(0, labels);
        let below = |suffix: &[u8]| [own, suffix].concat();
        let inside = [[b"\x03svc", &*domain.wire].concat(), domain.wire.to_vec()];
        let outside = search.iter().map(|domain| domain.wire.to_vec()).chain([vec![0]]);
        for candidate in inside.into_iter().chain(outside).map(|suffix| below(&suffix)) {
            if candidate.len() <= MAX_NAME && self.exists(&candidate, question).await? {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }

    async fn exists(self: &Rc<Self>, candidate: &[u8], question: &ClientQuery) -> Result<bool, Failed> {
        let Ok(name) = Name::parse(candidate, 0) else { return Ok(false) };
        {
            let zone = self.table.load();
            let lazy_caller = LazyCaller::new(&zone, Caller::Address(question.from));
            match resolve(&lazy_caller, &name, NoTrace) {
                // A stub resolver continues its search after a name without records.
                Outcome::Found(Node::Empty | Node::Apex, _) | Outcome::Missing(_) => return Ok(false),
                Outcome::Found(..) => return Ok(true),
                Outcome::NotReady => return Err(Failed),
                Outcome::NotOurs if zone.settings.is_forwarded(&name) => {}
                Outcome::NotOurs => return Ok(false),
            }
        }
        let key = CacheLookup::new(candidate, rtype::A, key_flags_of(&question.request)).key();
        match self.lookup(key, question.from).await {
            Some((entry, _)) if entry.rcode == rcode::NOERROR => Ok(true),
            Some((entry, _)) if entry.rcode == rcode::NXDOMAIN => Ok(false),
            _ => Err(Failed),
        }
    }

    /// Replies from the zone alone.
    fn reply_from_zone(&self, question: Waiting) {
        let zone = self.table.load();
        let mut buffer = self.buffer.borrow_mut();
        let limit = if question.request.limit == u16::MAX { Limit::Stream } else { Limit::Datagram };
        let (caller, mut scratch) = (Caller::Address(question.from), Scratch::zone_only(self.turn()));
        let verdict = answer(&zone, caller, &question.query, limit, &mut scratch, &mut buffer);
        if let Verdict::Reply { len, .. } = verdict {
            self.send(question, buffer.get(..len).unwrap_or(&[]), &verdict);
        }
    }
}

impl Found {
    /// Adds an answer of the zone. The last source decides the rcode.
    fn take(&mut self, mut message: Message) {
        self.answers.append(&mut message.answers);
        self.authorities = message.authorities;
        self.rcode = u16::from(message.metadata.response_code);
    }

    fn alias(&mut self, name: &Name, target: &[u8], ttl: u32) {
        if let (Some(owner), Some(target)) = (record_name(name.wire()), record_name(target)) {
            self.answers.push(Record::from_rdata(owner, ttl, RData::CNAME(rdata::CNAME(target))));
        }
    }

    /// Encodes all parts as one reply.
    fn entry(self, question: &ClientQuery) -> Option<Entry> {
        let name = Name::parse(&question.query, HEADER_LEN).ok()?;
        let sent = [name.wire(), &question.request.qtype.to_be_bytes(), &[0, 1]].concat();
        let asked = Message::from_vec(&[&[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], &*sent].concat()).ok()?;
        let mut message = asked.into_response();
        message.metadata.response_code = ResponseCode::from(0, (self.rcode & 0x0f) as u8);
        message.answers = self.answers;
        message.authorities = self.authorities;
        let octets = message.to_vec().ok()?;
        let untouched = Ttls { floor: 0, ceiling: u32::MAX };
        let mut entry = Entry::parse(&octets, &sent, untouched, 0, |_| false).ok()?;
        entry.set_errors(&self.errors);
        Some(entry)
    }
}

/// Encodes a query with RD set, as a client would send it.
fn query(name: &[u8], qtype: u16) -> Vec<u8> {
    let [high, low] = qtype.to_be_bytes();
    let [rd, _] = flags::RD.to_be_bytes();
    [&[0, 0, rd, 0, 0, 1, 0, 0, 0, 0, 0, 0], name, &[high, low, 0, 1]].concat()
}

fn record_name(wire: &[u8]) -> Option<RecordName> {
    RecordName::read(&mut BinDecoder::new(wire)).ok()
}
