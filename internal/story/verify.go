package story

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/sallyport/sallyport/internal/audit"
)

// Finding is the first thing that is wrong with a log.
type Finding struct {
	File   string `json:"file"`
	Line   int    `json:"line"` // from 1
	Code   Code   `json:"code"`
	Detail string `json:"detail"`
}

func (f *Finding) Error() string {
	return fmt.Sprintf("%s:%d: %s: %s", f.File, f.Line, f.Code, f.Detail)
}

// Code says what is wrong.
type Code string

const (
	Altered      Code = "altered"       // the line is not what was written
	Missing      Code = "missing"       // lines before it were removed, or it was moved to the front
	Repeated     Code = "repeated"      // it is there again, or was moved to the back
	Beheaded     Code = "beheaded"      // the first line of a chain is none that begins one
	Continued    Code = "continued"     // a chain goes on after its end
	Unchained    Code = "unchained"     // a line without a chain, where there were chains already
	NoCheckpoint Code = "no_checkpoint" // none where one is due
	Unsigned     Code = "unsigned"      // a checkpoint without signature, or no chain, and keys to verify it by
	UnknownKey   Code = "unknown_key"   // a checkpoint signed by none of the keys
	BadSignature Code = "bad_signature" // what a checkpoint signs is not what stands before it
	Unseen       Code = "unseen"        // a line that another chain has seen is not there
	HeadMissing  Code = "head_missing"  // a pinned head is not there
)

// Verifier reads the files of a log in their order and finds the first line that is not as it was written. Its memory does
// not grow with the log, but by a little for each chain.
type Verifier struct {
	// Keys finds the public key of a checkpoint. Nil: signatures are not looked at.
	Keys func(kid string) (ed25519.PublicKey, bool)
	// Heads are hashes that somebody kept: each must be that of a line.
	Heads map[string]bool
	// Whole says that the files are all there ever was: no chain may begin in one that is not given.
	Whole bool

	report Report
	chains map[string]*state
	file   string
	line   int
	text   []byte // what is hashed
}

// Report is what was read.
type Report struct {
	Lines     int      `json:"lines"`
	Bytes     int64    `json:"bytes"`
	Torn      int      `json:"torn"`      // lines that were cut short: no record
	Unchained int      `json:"unchained"` // lines from before there were chains: anybody may have written them
	Chains    []*Chain `json:"chains"`    // in the order of their first lines
}

// Chain is one writer's.
type Chain struct {
	ID     string `json:"chain"`
	First  uint64 `json:"first"` // 1, unless it began in a file that was not given
	Last   uint64 `json:"last"`
	Head   string `json:"head"`             // the hash of the last line: to be pinned
	Ended  bool   `json:"ended"`            // by its writer; else it is open, was killed, or is cut short
	Signed uint64 `json:"signed"`           // up to this line signatures vouch for it; 0: none was verified
	Until  string `json:"until,omitempty"`  // the time of the checkpoint that does
	KeyID  string `json:"key_id,omitempty"` // and its key
}

// recent is of how many last lines of a chain the hash is known.
const recent = 64

type state struct {
	*Chain
	sum    [sha256.Size]byte
	hashes [recent][sha256.Size]byte // by n
	since  int                       // lines since the last checkpoint
	left   bool                      // the last line is a checkpoint before another file
}

// Report is what was read so far.
func (v *Verifier) Report() Report {
	for _, s := range v.chains {
		s.Head = base64.RawURLEncoding.EncodeToString(s.sum[:])
	}
	return v.report
}

// File reads one file to its end. The error is a *Finding or one of reading.
func (v *Verifier) File(name string, r io.Reader) error {
	if v.chains == nil {
		v.chains = map[string]*state{}
	}
	v.file, v.line = name, 0
	b := bufio.NewReaderSize(r, maxText)
	for {
		text, err := b.ReadSlice('\n')
		v.report.Bytes += int64(len(text))
		if len(text) > 0 {
			v.line++
			v.report.Lines++
		}
		switch {
		case errors.Is(err, io.EOF):
			if len(text) == 0 {
				return nil
			}
			v.report.Torn++
			if !isFragment(text) {
				return v.found(Altered, "the last line is no part of a line")
			}
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
			return v.found(Altered, "the line is longer than any that sallyport writes")
		case err != nil:
			return fmt.Errorf("read %s: %w", name, err)
		}
		if err := v.one(text[:len(text)-1]); err != nil {
			return err
		}
	}
}

// End says what only the end of the log can say.
func (v *Verifier) End() error {
	for head, there := range v.Heads {
		if !there {
			return v.found(HeadMissing, "no line has the hash "+head+", which was pinned: the log was cut short before it, or it is of another log")
		}
	}
	if v.Keys != nil && len(v.chains) == 0 && v.report.Unchained > 0 {
		return v.found(Unsigned, "no line of the log is in a chain")
	}
	return nil
}

func (v *Verifier) found(code Code, detail string) error {
	return &Finding{File: v.file, Line: v.line, Code: code, Detail: detail}
}

const (
	tornMark = "[torn]"
	begins   = `{"v":`
)

// one judges a line.
func (v *Verifier) one(text []byte) error {
	if bytes.HasSuffix(text, []byte(tornMark)) {
		v.report.Torn++
		return nil
	}
	err := v.sealed(text)
	if err == nil {
		return nil
	}
	// What a writer could not write whole, another may have gone on behind.
	if at := bytes.LastIndex(text, []byte(begins)); at > 0 && isFragment(text[:at]) {
		if err = v.sealed(text[at:]); err == nil {
			v.report.Torn++
		}
	}
	return err
}

// isFragment reports whether text could be a line that was cut short: no object that is whole with something behind it.
func isFragment(text []byte) bool {
	d := json.NewDecoder(bytes.NewReader(text))
	var whole json.RawMessage
	return d.Decode(&whole) != nil || int(d.InputOffset()) == len(text)
}

// sealed takes a line into its chain, or says why it is not the next one; then nothing has changed.
func (v *Verifier) sealed(text []byte) error {
	p, ok := audit.PlaceOf(text)
	if !ok {
		return v.loose(text)
	}
	s := v.chains[string(p.Chain)]
	var c *checkpoint
	if isCheckpoint(text) {
		var err error
		if c, err = readCheckpoint(text); err != nil {
			return v.found(Altered, "it is no checkpoint: "+err.Error())
		}
	}
	if s == nil {
		var err error
		if s, err = v.first(p, c); err != nil {
			return err
		}
	}
	if p.N != s.Last+1 {
		return v.outOfTurn(s, p)
	}
	sum := v.digest(s.sum, p.Text)
	if !is(sum, p.Hash) {
		return v.found(Altered, "its hash is not that of what stands here")
	}
	if err := v.inOrder(s, p, c); err != nil {
		return err
	}
	v.take(s, sum, p, c)
	return nil
}

// loose judges a line that says no place.
func (v *Verifier) loose(text []byte) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil || members == nil {
		return v.found(Altered, "it is no JSON object")
	}
	for _, name := range []string{"chain", "n", "hash"} {
		if _, ok := members[name]; ok {
			return v.found(Altered, "its end, which says its place in the chain, is not as sallyport writes it")
		}
	}
	if len(v.chains) > 0 {
		return v.found(Unchained, "it is in no chain: sallyport did not write it here")
	}
	v.report.Unchained++
	return nil
}

// first judges the first line of a chain.
func (v *Verifier) first(p audit.Place, c *checkpoint) (*state, error) {
	s := &state{Chain: &Chain{ID: string(p.Chain), First: p.N}}
	switch {
	case p.N == 1 && c != nil && c.Why == "begin":
		return s, nil
	case p.N > 1 && !v.Whole && c != nil && (c.Why == "open" || c.Why == "end") && decode(c.Head, s.sum[:]):
		s.Last, s.left = p.N-1, true
		return s, nil
	}
	return nil, v.found(Beheaded, fmt.Sprintf("chain %s begins here with its line %d, which is no checkpoint that begins it: what stood before was removed, or the line was altered",
		p.Chain, p.N))
}

// outOfTurn says what became of the lines between the last of a chain and this one.
func (v *Verifier) outOfTurn(s *state, p audit.Place) error {
	// Was it the number alone?
	digits := strconv.AppendUint([]byte(`","n":`), p.N, 10)
	right := strconv.AppendUint([]byte(`","n":`), s.Last+1, 10)
	if at := bytes.LastIndex(p.Text, digits); at >= 0 {
		text := append(append(append([]byte(nil), p.Text[:at]...), right...), p.Text[at+len(digits):]...)
		if is(v.digest(s.sum, text), p.Hash) {
			return v.found(Altered, fmt.Sprintf("its number was %d", s.Last+1))
		}
	}
	if p.N <= s.Last {
		return v.found(Repeated, fmt.Sprintf("line %d of chain %s comes after line %d: it is there again, or was moved", p.N, p.Chain, s.Last))
	}
	if p.N == s.Last+2 {
		return v.found(Missing, fmt.Sprintf("line %d of chain %s should stand before this one: it was removed or moved", s.Last+1, p.Chain))
	}
	return v.found(Missing, fmt.Sprintf("lines %d to %d of chain %s should stand before this one: they were removed or moved", s.Last+1, p.N-1, p.Chain))
}

func (v *Verifier) digest(before [sha256.Size]byte, text []byte) [sha256.Size]byte {
	v.text = append(append(v.text[:0], before[:]...), text...)
	return sha256.Sum256(v.text)
}

// is compares a hash with what stands in a line.
func is(sum [sha256.Size]byte, text []byte) bool {
	var b [43]byte
	base64.RawURLEncoding.Encode(b[:], sum[:])
	return bytes.Equal(b[:], text)
}

// inOrder judges what a line is by what may come next in its chain.
func (v *Verifier) inOrder(s *state, p audit.Place, c *checkpoint) error {
	switch {
	case s.Ended:
		return v.found(Continued, "chain "+s.ID+" has ended before")
	case s.left && (c == nil || c.Why != "open" && c.Why != "end"):
		return v.found(NoCheckpoint, "chain "+s.ID+" goes on after it has left, without a checkpoint that opens")
	case c == nil && s.since >= audit.CheckpointEvery:
		return v.found(NoCheckpoint, fmt.Sprintf("%d lines without a checkpoint", s.since+1))
	case c == nil:
		return nil
	case c.Head != "" && c.Head != base64.RawURLEncoding.EncodeToString(s.sum[:]):
		return v.found(Altered, "its head is not the hash of the chain's line before")
	}
	if err := v.seen(c.Seen); err != nil {
		return err
	}
	return v.signature(s, p, c)
}

// signature judges a checkpoint's.
func (v *Verifier) signature(s *state, p audit.Place, c *checkpoint) error {
	if v.Keys == nil {
		return nil
	}
	if p.Sig == nil || c.KeyID == "" {
		return v.found(Unsigned, "the checkpoint is not signed: anybody may have written the chain so far")
	}
	key, ok := v.Keys(c.KeyID)
	if !ok {
		return v.found(UnknownKey, "the checkpoint is signed by the key "+c.KeyID+", which is none of those given")
	}
	sig, err := base64.RawURLEncoding.Strict().DecodeString(string(p.Sig))
	if err != nil || !ed25519.Verify(key, audit.CheckpointText(v.digest(s.sum, p.Signed)), sig) {
		return v.found(BadSignature, "the key "+c.KeyID+" has not signed this: the checkpoint or lines of its chain before it were made anew")
	}
	return nil
}

// seen judges what a checkpoint has seen of another chain.
func (v *Verifier) seen(p *seen) error {
	if p == nil {
		return nil
	}
	s := v.chains[p.Chain]
	if s == nil || s.Last < p.N {
		return v.found(Unseen, fmt.Sprintf("it has seen line %d of chain %s, which is not there: the chain, or its end, was removed", p.N, p.Chain))
	}
	var sum [sha256.Size]byte
	if !decode(p.Hash, sum[:]) || s.Last-p.N < recent && p.N >= s.First && s.hashes[p.N%recent] != sum {
		return v.found(Unseen, fmt.Sprintf("it has seen another line %d of chain %s than the one that is there", p.N, p.Chain))
	}
	return nil
}

// take makes a line the last of its chain.
func (v *Verifier) take(s *state, sum [sha256.Size]byte, p audit.Place, c *checkpoint) {
	if v.chains[s.ID] == nil {
		v.chains[s.ID] = s
		v.report.Chains = append(v.report.Chains, s.Chain)
	}
	s.sum, s.Last = sum, p.N
	s.hashes[p.N%recent] = sum
	s.left = false
	s.since++
	if c != nil {
		s.since, s.left, s.Ended = 0, c.Why == "leave", c.Why == "end"
		if v.Keys != nil {
			s.Signed, s.Until, s.KeyID = p.N, c.Time, c.KeyID
		}
	}
	if len(v.Heads) > 0 {
		if _, pinned := v.Heads[string(p.Hash)]; pinned {
			v.Heads[string(p.Hash)] = true
		}
	}
}

// checkpoint is a line of that kind, as far as it is looked at.
type checkpoint struct {
	Time  string `json:"time"`
	Why   string `json:"why"`
	Head  string `json:"head"`
	KeyID string `json:"kid"`
	Seen  *seen  `json:"seen"`
}

type seen struct {
	Chain string `json:"chain"`
	N     uint64 `json:"n"`
	Hash  string `json:"hash"`
}

const beforeKind = len(`{"v":1,"time":"2027-03-01T12:00:00.123456Z",`)

func isCheckpoint(text []byte) bool {
	return len(text) > beforeKind && bytes.HasPrefix(text[beforeKind:], []byte(`"kind":"checkpoint"`))
}

func readCheckpoint(text []byte) (*checkpoint, error) {
	var c checkpoint
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

func decode(text string, into []byte) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	return err == nil && copy(into, b) == len(into) && len(b) == len(into)
}
