package egress

import (
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/leak"
)

const (
	maxTokens   = 100_000         // inbound tokens that are known again
	tokenLeeway = 1 * time.Minute // an inbound token may be believed for longer than it says
	searchFirst = 64 << 10        // bytes of a body that are searched before anything is sent
)

// remember has the token of a request known again in whatever leaves.
func (p *Proxy) remember(c *cause.Class) {
	if token := c.Token.Reveal(); token != "" && c.Caller != nil {
		p.tokens.Add(token, c.ID, c.Caller.Expires.Add(tokenLeeway))
	}
}

// search denies a request that carries an inbound token out: in its target, in a header, in the beginning of its body. A
// body of known length is read so far before anything is sent. The rest of it, and one in chunks, whose client may wait for
// an answer before it goes on, is searched on its way, each piece before it is sent. In report mode too: what has left
// cannot be called back.
func (x *passage) search() bool {
	if x.incoming == nil || x.p.tokens == nil {
		return true
	}
	r := x.incoming
	parts := [][]byte{[]byte(targetOf(r)), []byte(r.Host)}
	for _, h := range []http.Header{x.removed, r.Header} {
		names := make([]string, 0, len(h))
		for name := range h {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			parts = append(parts, []byte(name))
			for _, v := range h[name] {
				parts = append(parts, []byte(v))
			}
		}
	}
	id, found := x.p.tokens.Find(parts...)
	if !found && r.ContentLength != 0 {
		x.body = x.p.tokens.Stream()
	}
	if !found && r.ContentLength > 0 {
		first, err := readFirst(r)
		id, found = x.p.tokens.Find(first)
		r.Body = &resumed{first: first, err: err, rest: r.Body}
	}
	if found {
		return x.denyAs(codeLeaving, "it carries the token of request "+id)
	}
	return true
}

// readFirst reads the beginning of a body, and the error that ended it, if one did.
func readFirst(r *http.Request) ([]byte, error) {
	first := make([]byte, min(r.ContentLength, searchFirst))
	n, err := io.ReadFull(r.Body, first)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // it was to be longer
	}
	return first[:n], err
}

// resumed is a body whose beginning was read.
type resumed struct {
	first []byte
	err   error
	rest  io.ReadCloser
}

func (b *resumed) Read(p []byte) (int, error) {
	switch {
	case len(b.first) > 0:
		n := copy(p, b.first)
		b.first = b.first[n:]
		return n, nil
	case b.err != nil:
		return 0, b.err
	}
	return b.rest.Read(p)
}

func (b *resumed) Close() error { return b.rest.Close() }

// leaves reports whether a piece of a body holds an inbound token, or ends one.
func leaves(s *leak.Stream, piece []byte) bool {
	if s == nil {
		return false
	}
	_, found := s.Find(piece)
	return found
}
