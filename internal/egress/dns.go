package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/safedial"
)

const (
	answerTTL    = 10      // seconds: long enough for a burst of connections, short enough to notice a change
	plainUDP     = 512     // bytes of an answer without EDNS (RFC 1035, section 4.2.1)
	mostUDP      = 1232    // bytes that no path fragments (DNS flag day 2020)
	mostQuery    = 4 << 10 // bytes of a question
	mostAnswer   = 64      // addresses
	udpWorkers   = 64      // questions at once; what comes beside them is dropped
	ednsBlocked  = 15      // RFC 8914, section 4.16
	ednsErrorOpt = 15      // the option that holds it
	tcpIdle      = 30 * time.Second
)

// question is the one that a query asks.
type question struct {
	header dnsmessage.Header
	dnsmessage.Question
	name string // lower-case, without trailing dot
	edns bool
	size int // of an answer
}

// reply is what is said to it.
type reply struct {
	rcode     dnsmessage.RCode
	addresses []netip.Addr
	blocked   bool
}

// Answer is a DNS server for the destinations' names: one message in, one out; nil if there is nothing to say. It answers
// for their A and AAAA records, as the resolver behind it does, once the addresses have been judged; other types they do
// not have. All other names do not exist, so that a program that tries a search domain goes on to the next: nothing is
// asked of anybody for them.
func (p *Proxy) Answer(ctx context.Context, query []byte, tcp bool) []byte {
	q, rcode := readQuestion(query)
	if q == nil {
		return nil
	}
	r := reply{rcode: rcode}
	code := "malformed"
	if rcode == dnsmessage.RCodeSuccess {
		r, code = p.answerName(ctx, q)
	}
	p.metrics.dns.WithLabelValues(code).Inc()
	limit := 65535
	if !tcp {
		limit = q.size
	}
	return q.write(r, limit)
}

// answerName returns the reply, and a word for the metric.
func (p *Proxy) answerName(ctx context.Context, q *question) (reply, string) {
	r := p.rules.Load()
	if q.name == "localhost" || strings.HasSuffix(q.name, ".localhost") { // RFC 6761, section 6.3
		return q.only([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}), "local"
	}
	if _, ok := r.names[q.name]; !ok {
		if p.isSearch(r, q.name) {
			return reply{rcode: dnsmessage.RCodeNameError}, "search"
		}
		d, waivable := policy.Deny(codeName, "no destination has this name: it is not looked up"), true
		if safedial.Host(q.name) != nil {
			d, waivable = policy.Deny(codeHost, "not a name that programs read alike: it is not looked up"), false
		}
		if !p.denyName(r, q.name, d, nil, waivable) {
			return reply{rcode: dnsmessage.RCodeNameError, blocked: true}, string(d.Code)
		}
	}
	addresses, err := p.lookUp(ctx, r, q.name)
	var denied *safedial.DeniedError
	var missing *net.DNSError
	switch {
	case errors.As(err, &denied):
		p.denyName(r, q.name, policy.Deny(policy.Code(denied.Code), denied.Error()), denied, false)
		return reply{rcode: dnsmessage.RCodeNameError, blocked: true}, denied.Code
	case errors.As(err, &missing) && missing.IsNotFound:
		return reply{rcode: dnsmessage.RCodeNameError}, "not_found"
	case err != nil:
		return reply{rcode: dnsmessage.RCodeServerFailure}, string(codeResolve)
	}
	return q.only(addresses), "answered"
}

// only is the reply with those addresses that were asked for.
func (q *question) only(addresses []netip.Addr) reply {
	var r reply
	for _, a := range addresses {
		if (q.Type == dnsmessage.TypeA && a.Is4() || q.Type == dnsmessage.TypeAAAA && a.Is6()) && len(r.addresses) < mostAnswer {
			r.addresses = append(r.addresses, a)
		}
	}
	return r
}

// isSearch reports whether the name is a destination's with a search domain behind it, which resolvers try by themselves.
func (p *Proxy) isSearch(r *rules, name string) bool {
	for _, d := range p.search {
		if bare, ok := strings.CutSuffix(name, d); ok {
			if _, ok := r.names[bare]; ok || bare == "localhost" {
				return true
			}
		}
	}
	return false
}

// readQuestion reads a query strictly. A nil question is not to be answered; a code other than success is the answer.
func readQuestion(query []byte) (*question, dnsmessage.RCode) {
	var parser dnsmessage.Parser
	header, err := parser.Start(query)
	if err != nil || header.Response {
		return nil, 0
	}
	q := &question{header: header, size: plainUDP}
	if header.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented
	}
	questions, err := parser.AllQuestions()
	if err != nil || len(questions) != 1 || header.Truncated {
		return q, dnsmessage.RCodeFormatError
	}
	q.Question = questions[0]
	q.name = strings.Map(lower, strings.TrimSuffix(q.Name.String(), "."))
	if parser.SkipAllAnswers() != nil || parser.SkipAllAuthorities() != nil {
		return q, dnsmessage.RCodeFormatError
	}
	for {
		h, err := parser.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil || parser.SkipAdditional() != nil || h.Type == dnsmessage.TypeOPT && q.edns {
			return q, dnsmessage.RCodeFormatError
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns, q.size = true, min(max(int(h.Class), plainUDP), mostUDP)
		}
	}
	if q.Class != dnsmessage.ClassINET {
		return q, dnsmessage.RCodeRefused
	}
	return q, dnsmessage.RCodeSuccess
}

// lower takes the letter case of ASCII away, as the DNS does (RFC 4343), and of nothing else.
func lower(r rune) rune {
	if r >= 'A' && r <= 'Z' {
		r += 'a' - 'A'
	}
	return r
}

// write makes the message, cut to a flag if it is longer than limit.
func (q *question) write(r reply, limit int) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RecursionDesired: q.header.RecursionDesired,
		RecursionAvailable: true, RCode: r.rcode,
	}}
	if q.Name.Length > 0 {
		m.Questions = []dnsmessage.Question{q.Question}
	}
	h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: answerTTL}
	for _, a := range r.addresses {
		var body dnsmessage.ResourceBody = &dnsmessage.AAAAResource{AAAA: a.As16()}
		if a.Is4() {
			body = &dnsmessage.AResource{A: a.As4()}
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: body})
	}
	if q.edns {
		m.Additionals = []dnsmessage.Resource{q.opt(r)}
	}
	packed, err := m.Pack()
	if err == nil && len(packed) > limit {
		m.Answers, m.Truncated = nil, true
		packed, err = m.Pack()
	}
	if err != nil {
		return nil
	}
	return packed
}

// opt says in EDNS that it was we who know nothing of the name (RFC 8914), for a person with dig.
func (q *question) opt(r reply) dnsmessage.Resource {
	var h dnsmessage.ResourceHeader
	h.SetEDNS0(mostUDP, dnsmessage.RCodeSuccess, false) // the name is the root: it cannot be too long
	body := &dnsmessage.OPTResource{}
	if r.blocked {
		data := binary.BigEndian.AppendUint16(nil, ednsBlocked)
		body.Options = []dnsmessage.Option{{Code: ednsErrorOpt, Data: append(data, "no destination of the egress"...)}}
	}
	return dnsmessage.Resource{Header: h, Body: body}
}

// serveTCP answers the questions on a connection, each behind its length (RFC 1035, section 4.2.2), in their order.
func (p *Proxy) serveTCP(ctx context.Context, c net.Conn) {
	buffer := make([]byte, 2+mostQuery)
	for {
		c.SetReadDeadline(time.Now().Add(tcpIdle))
		if _, err := io.ReadFull(c, buffer[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(buffer))
		if n > mostQuery {
			return
		}
		if _, err := io.ReadFull(c, buffer[:n]); err != nil {
			return
		}
		answer := p.Answer(ctx, slices.Clone(buffer[:n]), true)
		if answer == nil {
			return
		}
		c.SetWriteDeadline(time.Now().Add(tcpIdle))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// serveUDP answers the questions that come to a socket until it is closed.
func (p *Proxy) serveUDP(ctx context.Context, c *net.UDPConn) {
	places := make(chan struct{}, udpWorkers)
	var workers sync.WaitGroup
	defer workers.Wait()
	buffer := make([]byte, mostQuery)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		query := slices.Clone(buffer[:n])
		select {
		case places <- struct{}{}:
		default:
			continue
		}
		workers.Go(func() {
			defer func() { <-places }()
			defer func() {
				if v := recover(); v != nil {
					p.begin(viaDNS).fault(v)
				}
			}()
			if answer := p.Answer(ctx, query, false); answer != nil {
				c.WriteToUDPAddrPort(answer, from)
			}
		})
	}
}

const (
	denialEvery   = time.Minute // one name is recorded
	denialMost    = 1024        // names that are known to have been
	denialBurst   = 128         // records of names at once, and then
	denialsPerSec = 8
)

// denials keeps a program that asks for denied names from filling the log: the metric counts them all, the log has each
// name once a minute, and of many names some.
type denials struct {
	mu       sync.Mutex
	seen     map[string]time.Time
	left     float64
	refilled time.Time
	skipped  int
}

// worth reports whether the denial of a name is to be recorded, and how many were not since the last that was. must is for
// a name that is looked up all the same: not without a record.
func (d *denials) worth(name string, now time.Time, must bool) (ok bool, skipped int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen == nil {
		d.seen, d.left, d.refilled = map[string]time.Time{}, denialBurst, now
	}
	d.left = min(denialBurst, d.left+now.Sub(d.refilled).Seconds()*denialsPerSec)
	d.refilled = now
	if at, ok := d.seen[name]; ok && now.Sub(at) < denialEvery || d.left < 1 && !must {
		d.skipped++
		return false, 0
	}
	if len(d.seen) >= denialMost {
		clear(d.seen)
	}
	d.seen[name] = now
	d.left = max(0, d.left-1)
	skipped, d.skipped = d.skipped, 0
	return true, skipped
}

// forget takes back that the denial of a name is on record.
func (d *denials) forget(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.seen, name)
}

// denyName records that a name was denied; refused is the guard's word, if it was the guard. If that is waivable it
// reports, in report mode, that the name is to be looked up all the same.
func (p *Proxy) denyName(r *rules, name string, d policy.Decision, refused *safedial.DeniedError, waivable bool) (pass bool) {
	x := p.begin(viaDNS)
	x.refused = refused
	x.rules, x.unmetered, x.out.Host.Name, x.decision = r, true, name, d
	defer x.outcome()
	pass = waivable && x.deny(d)
	ok, skipped := p.denials.worth(name, x.began, pass)
	if !ok {
		return pass
	}
	if x.skipped = skipped; !x.record() {
		p.denials.forget(name)
		return false
	}
	return pass
}
