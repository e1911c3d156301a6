package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"strconv"
	"time"
)

// CheckpointEvery is how many lines of a chain may follow one another without a checkpoint.
const CheckpointEvery = 1000

const (
	// checkpointAfter is how long the last lines of a chain stay without a checkpoint.
	checkpointAfter = 30 * time.Second
	// maxWrite bounds the lines of one write(2), in bytes before they are sealed.
	maxWrite = 64 << 10
	// signedAs begins whatever a checkpoint's signature covers: our keys sign assertions too, and neither may pass for the other.
	signedAs = "sallyport audit checkpoint v1\n"
)

// Why a checkpoint was written.
const (
	whyBegin = "begin" // the first line of a chain
	whyOpen  = "open"  // the first of a chain in another file
	whyDue   = "due"   // after so many lines or seconds
	whyLeave = "leave" // the last before another file
	whyEnd   = "end"   // the last of a chain
)

// link is where a chain stands: everything that its next line depends on.
type link struct {
	n      uint64            // of its last line; 0 before the first
	sum    [sha256.Size]byte // its hash
	since  int               // lines since the last checkpoint
	placed bool              // a checkpoint of the chain begins its part of the present file
}

// mark is the chain after a line that a write holds.
type mark struct {
	end   int // of the line, in what is written
	taken int // bytes of the lines that were given in
	link  link
}

// chain seals lines in the order in which they are written. A line that was not written whole has not been in the
// chain: its number and its place are the next one's. l.mu is held where it is used.
type chain struct {
	id    string
	at    link
	text  []byte // of digest
	out   []byte // of the write in hand
	marks []mark
	e     line        // a checkpoint
	timer *time.Timer // nil, or set to write the checkpoint that is due
}

func newChain() chain {
	var id [12]byte
	rand.Read(id[:])
	return chain{id: base64.RawURLEncoding.EncodeToString(id[:])}
}

// seal puts whole lines into out, each with its place in the chain, checkpoints between them where they are due, and one
// at the end if last says why.
func (l *Log) seal(b []byte, last string) {
	c := &l.chain
	c.out, c.marks = c.out[:0], c.marks[:0]
	if l.torn {
		c.out = append(c.out, tornMark...)
	}
	at, taken := c.at, 0
	for taken < len(b) {
		switch {
		case at.n == 0:
			at = l.checkpoint(at, taken, whyBegin)
		case !at.placed:
			at = l.checkpoint(at, taken, whyOpen)
		case at.since >= CheckpointEvery:
			at = l.checkpoint(at, taken, whyDue)
		}
		text := b[taken : taken+bytes.IndexByte(b[taken:], '\n')+1]
		taken += len(text)
		start := len(c.out)
		c.out = append(c.out, text[:len(text)-len("}\n")]...)
		at = c.close(start, at, nil)
		at.since++
		c.marks = append(c.marks, mark{len(c.out), taken, at})
	}
	if last != "" {
		at = l.checkpoint(at, taken, last)
	}
}

// close ends the line that begins at start and lacks its closing brace.
func (c *chain) close(start int, at link, sign func(sum [sha256.Size]byte) []byte) link {
	c.out = append(c.out, `,"chain":"`...)
	c.out = append(c.out, c.id...)
	c.out = append(c.out, `","n":`...)
	at.n++
	c.out = strconv.AppendUint(c.out, at.n, 10)
	before := at.sum
	at.sum = c.digest(before, c.out[start:])
	if sign != nil {
		c.out = append(c.out, `,"sig":"`...)
		c.out = base64.RawURLEncoding.AppendEncode(c.out, sign(at.sum))
		c.out = append(c.out, '"')
		at.sum = c.digest(before, c.out[start:])
	}
	c.out = append(c.out, `,"hash":"`...)
	c.out = base64.RawURLEncoding.AppendEncode(c.out, at.sum[:])
	c.out = append(c.out, "\"}\n"...)
	return at
}

func (c *chain) digest(before [sha256.Size]byte, text []byte) [sha256.Size]byte {
	c.text = append(append(c.text[:0], before[:]...), text...) // in one piece: a hash.Hash would cost an allocation
	return sha256.Sum256(c.text)
}

// checkpoint puts one into out. What it signs is the hash of its own line up to the signature, which holds all that was
// before it in the chain.
func (l *Log) checkpoint(at link, taken int, why string) link {
	c := &l.chain
	c.e.begin(time.Now(), "checkpoint")
	c.e.text("why", why, shortText)
	if at.n > 0 {
		c.e.text("head", base64.RawURLEncoding.EncodeToString(at.sum[:]), shortText)
	}
	if p, ok := l.lastOfAnother(); ok {
		c.e.name("seen")
		c.e.b = fmt.Appendf(c.e.b, `{"chain":"%s","n":%d,"hash":"%s"}`, p.Chain, p.N, p.Hash)
	}
	var sign func([sha256.Size]byte) []byte
	if l.sign != nil {
		if key := l.sign(); key.Private != nil {
			c.e.text("kid", key.ID, shortText)
			sign = func(sum [sha256.Size]byte) []byte {
				return ed25519.Sign(key.Private, CheckpointText(sum))
			}
		}
	}
	start := len(c.out)
	c.out = append(c.out, c.e.b...)
	at = c.close(start, at, sign)
	at.since, at.placed = 0, why != whyLeave && why != whyEnd
	c.marks = append(c.marks, mark{len(c.out), taken, at})
	return at
}

// lastOfAnother finds the last line of another chain near the end of the file. Each checkpoint names it, so that whoever
// takes a whole chain away must take away those that have seen it.
func (l *Log) lastOfAnother() (p Place, ok bool) {
	f, regular := l.w.(*os.File)
	if l.path == "" || !regular {
		return Place{}, false
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return Place{}, false
	}
	tail := make([]byte, min(info.Size(), 2*maxLine))
	if _, err := f.ReadAt(tail, info.Size()-int64(len(tail))); err != nil {
		return Place{}, false
	}
	for end := bytes.LastIndexByte(tail, '\n'); end >= 0; {
		start := bytes.LastIndexByte(tail[:end], '\n')
		if p, ok := PlaceOf(tail[start+1 : end]); ok && string(p.Chain) != l.chain.id {
			return p, true
		}
		end = start
	}
	return Place{}, false
}

// Place is where a line says that it stands. Its slices are parts of the line.
type Place struct {
	Chain, Hash []byte
	N           uint64
	Sig         []byte // of a checkpoint that is signed, else nil
	Text        []byte // what the hash covers
	Signed      []byte // what the signature covers; nil where there is none
}

const hashEnd = len(`,"hash":"`) + 43 + len(`"}`)

// PlaceOf reads the end of a line, given without its line end, if it is shaped as ours are. Whether it says the truth is
// for who verifies it.
func PlaceOf(text []byte) (p Place, ok bool) {
	cut := len(text) - hashEnd
	if cut < 0 || !bytes.HasPrefix(text[cut:], []byte(`,"hash":"`)) || !bytes.HasSuffix(text, []byte(`"}`)) {
		return p, false
	}
	p.Text, p.Hash = text[:cut], text[cut+len(`,"hash":"`):len(text)-len(`"}`)]
	at := bytes.LastIndex(p.Text, []byte(`,"chain":"`))
	if at < 0 {
		return p, false
	}
	rest := p.Text[at+len(`,"chain":"`):]
	p.Chain, rest, ok = bytes.Cut(rest, []byte(`","n":`))
	digits, sig, signed := bytes.Cut(rest, []byte(`,"sig":"`))
	if signed {
		p.Signed = p.Text[:len(p.Text)-len(sig)-len(`,"sig":"`)]
		p.Sig, signed = bytes.CutSuffix(sig, []byte{'"'})
		ok = ok && signed && isBase64(p.Sig)
	}
	ok = ok && len(p.Chain) <= shortText && isBase64(p.Chain) && isBase64(p.Hash) && len(digits) > 0 && len(digits) < 20 && digits[0] != '0'
	for _, c := range digits {
		ok = ok && '0' <= c && c <= '9'
		p.N = p.N*10 + uint64(c-'0')
	}
	return p, ok
}

func isBase64(b []byte) bool {
	for _, c := range b {
		if !isBase64URL(c) || c == '=' {
			return false
		}
	}
	return len(b) > 0
}

// CheckpointText is what a checkpoint's key signs: sum is the hash of the line before in its chain and of the checkpoint
// up to its signature.
func CheckpointText(sum [sha256.Size]byte) []byte {
	return base64.RawURLEncoding.AppendEncode([]byte(signedAs), sum[:])
}

// settle has the chain stand where the first n bytes of out have brought it, and returns how much of the lines that were
// given in is whole in them.
func (l *Log) settle(n int) (taken int) {
	c := &l.chain
	ending := 0
	if l.torn {
		ending = len(tornMark)
	}
	if n < ending {
		return 0
	}
	whole := ending
	for _, m := range c.marks {
		if m.end > n {
			break
		}
		whole, taken, c.at = m.end, m.taken, m.link
	}
	l.torn = n > whole
	if c.at.since > 0 && c.timer == nil && !l.closed && (l.path != "" || l.sign != nil) {
		c.timer = time.AfterFunc(checkpointAfter, l.due)
	}
	return taken
}

// due writes the checkpoint that time asks for.
func (l *Log) due() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.chain.timer = nil
	if l.closed || l.fault != nil || l.chain.at.since == 0 {
		return // after a fault the next line sets the timer anew
	}
	if _, err := l.put(nil, whyDue); err != nil {
		l.fail(err)
	} else if l.durability == Synced {
		l.schedule(flushEvery)
	}
}

// finish writes the last checkpoint into a file. There is nothing to leave where no line of the chain is, and nothing to
// end if there is none anywhere.
func (l *Log) finish(why string) error {
	if l.chain.at.n == 0 || why == whyLeave && !l.chain.at.placed {
		return nil
	}
	if _, err := l.put(nil, why); err != nil {
		return err
	}
	at := l.chain.at
	// somebody else than the file should know it: who cuts the file short cannot cut short what was told before
	l.logger.Info("the audit log has a checkpoint", "why", why, "chain", l.chain.id, "n", at.n,
		"head", base64.RawURLEncoding.EncodeToString(at.sum[:]))
	return nil
}
