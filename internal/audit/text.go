package audit

// AppendText appends a JSON string to b as a line of the log has it: what looks like a JWT is redacted, whatever a terminal
// might act on is escaped, and what is longer than about limit bytes is cut and says so.
func AppendText(b []byte, s string, limit int) []byte {
	e := line{b: b}
	e.quote(s, limit)
	return e.b
}
