package dns

import (
	"errors"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// maxUDP is the largest answer sent by UDP whatever the client offers: it fits into every
// path's packets (DNS flag day 2020).
const maxUDP = 1232

// query is a question as it came in.
type query struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	lower    string // the name, lower case, without the last dot
	edns     bool
	dnssec   bool
	size     int // largest answer the client takes by UDP
}

// parseQuery reads a message. answer is what to send at once when the message is not a
// question for us; with neither (ok is false and answer empty) it deserves no answer.
func parseQuery(message []byte) (q query, answer []byte, ok bool) {
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(message); err != nil || q.header.Response {
		return q, nil, false
	}
	questions, err := p.AllQuestions()
	if err != nil || len(questions) != 1 {
		return q, errorAnswer(q, dnsmessage.RCodeFormatError), false
	}
	q.question, q.size = questions[0], 512
	q.lower = strings.TrimSuffix(strings.ToLower(q.question.Name.String()), ".")
	if q.header.OpCode != 0 {
		return q, errorAnswer(q, dnsmessage.RCodeNotImplemented), false
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, errorAnswer(q, dnsmessage.RCodeFormatError), false
	}
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil || p.SkipAdditional() != nil {
			return q, errorAnswer(q, dnsmessage.RCodeFormatError), false
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns, q.dnssec = true, h.DNSSECAllowed()
			q.size = min(max(int(h.Class), 512), maxUDP)
		}
	}
	if q.question.Class != dnsmessage.ClassINET {
		return q, errorAnswer(q, dnsmessage.RCodeRefused), false
	}
	return q, nil, true
}

// header returns the header of an answer.
func (q query) answerHeader(code dnsmessage.RCode) dnsmessage.Header {
	return dnsmessage.Header{ID: q.header.ID, Response: true, OpCode: q.header.OpCode,
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true, RCode: code}
}

// errorAnswer is an answer without records.
func errorAnswer(q query, code dnsmessage.RCode) []byte {
	return build(q, q.answerHeader(code), func(*dnsmessage.Builder) error { return nil })
}

// build makes a message with the question, what fill adds, and EDNS when the client has it.
// It is nil when the records do not make a message.
func build(q query, h dnsmessage.Header, fill func(*dnsmessage.Builder) error) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, 512), h)
	b.EnableCompression()
	if q.question.Name.Length > 0 {
		if b.StartQuestions() != nil || b.Question(q.question) != nil {
			return nil
		}
	}
	if b.StartAnswers() != nil || fill(&b) != nil || b.StartAdditionals() != nil {
		return nil
	}
	if q.edns {
		var opt dnsmessage.ResourceHeader
		if opt.SetEDNS0(maxUDP, h.RCode, q.dnssec) != nil || b.OPTResource(opt, dnsmessage.OPTResource{}) != nil {
			return nil
		}
	}
	out, err := b.Finish()
	if err != nil {
		return nil
	}
	return out
}

// localAnswer turns a zone's result into a message. start rotates the addresses. more holds
// records of others that follow an alias.
func localAnswer(q query, config Config, r Result, start uint32, more []dnsmessage.Resource, code dnsmessage.RCode) []byte {
	h := q.answerHeader(code)
	h.Authoritative = true
	if !r.Exists {
		h.RCode = dnsmessage.RCodeNameError
	}
	ttl := config.TTLSeconds
	if ttl == 0 {
		ttl = 5
	}
	return build(q, h, func(b *dnsmessage.Builder) error {
		n := uint32(len(r.Answers))
		first := uint32(0)
		if n > 1 && r.Answers[0].Type != CNAME {
			first = start % n
		}
		for i := range n {
			if err := addRecord(b, q, r.Answers[(i+first)%n], ttl, int(n)); err != nil {
				return err
			}
		}
		for _, m := range more {
			if err := addResource(b, m); err != nil {
				return err
			}
		}
		if Type(q.question.Type) == SOA && q.lower == config.Domain {
			return addSOA(b, config, ttl)
		}
		if err := b.StartAuthorities(); err != nil {
			return err
		}
		if n == 0 {
			return addSOA(b, config, ttl)
		}
		if err := b.StartAdditionals(); err != nil {
			return err
		}
		for _, e := range r.Extra {
			if err := addRecord(b, q, e, ttl, 1); err != nil {
				return err
			}
		}
		return nil
	})
}

// addRecord adds one record of the cluster; count is how many share an SRV's weight.
func addRecord(b *dnsmessage.Builder, q query, r Record, ttl uint32, count int) error {
	owner := q.question.Name // as the client wrote it
	if r.Name != q.lower {
		var err error
		if owner, err = dnsmessage.NewName(r.Name + "."); err != nil {
			return err
		}
	}
	h := dnsmessage.ResourceHeader{Name: owner, Class: dnsmessage.ClassINET, TTL: ttl}
	if r.Type == A {
		return b.AResource(h, dnsmessage.AResource{A: r.Addr.As4()})
	}
	if r.Type == TXT {
		return b.TXTResource(h, dnsmessage.TXTResource{TXT: []string{r.Target}})
	}
	target, err := dnsmessage.NewName(r.Target + ".")
	if err != nil {
		return err
	}
	switch r.Type {
	case CNAME:
		return b.CNAMEResource(h, dnsmessage.CNAMEResource{CNAME: target})
	case PTR:
		return b.PTRResource(h, dnsmessage.PTRResource{PTR: target})
	case SRV:
		weight := uint16(max(1, 100/max(1, count)))
		return b.SRVResource(h, dnsmessage.SRVResource{Weight: weight, Port: r.Port, Target: target})
	}
	return nil
}

// addResource adds a record that another server gave.
func addResource(b *dnsmessage.Builder, r dnsmessage.Resource) error {
	switch body := r.Body.(type) {
	case *dnsmessage.AResource:
		return b.AResource(r.Header, *body)
	case *dnsmessage.AAAAResource:
		return b.AAAAResource(r.Header, *body)
	case *dnsmessage.CNAMEResource:
		return b.CNAMEResource(r.Header, *body)
	}
	return nil
}

func addSOA(b *dnsmessage.Builder, config Config, ttl uint32) error {
	zone, err := dnsmessage.NewName(config.Domain + ".")
	if err != nil {
		return err
	}
	ns, err := dnsmessage.NewName("ns.dns." + config.Domain + ".")
	if err != nil {
		return err
	}
	mbox, err := dnsmessage.NewName("hostmaster." + config.Domain + ".")
	if err != nil {
		return err
	}
	return b.SOAResource(dnsmessage.ResourceHeader{Name: zone, Class: dnsmessage.ClassINET, TTL: ttl},
		dnsmessage.SOAResource{NS: ns, MBox: mbox, Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, MinTTL: ttl})
}

// fit returns the answer, or when it is too large for the client one that says so.
func fit(q query, answer []byte, limit int) []byte {
	if len(answer) <= limit {
		return answer
	}
	var p dnsmessage.Parser
	h, err := p.Start(answer)
	if err != nil {
		return errorAnswer(q, dnsmessage.RCodeServerFailure)
	}
	h.ID, h.Truncated = q.header.ID, true
	return build(q, h, func(*dnsmessage.Builder) error { return nil })
}
