package wire

const (
	maxChunkLine  = 256     // bytes of one chunk's size and extensions
	maxExtensions = 4 << 10 // bytes of all chunk extensions of a body
	maxTrailer    = 2 << 10 // bytes of a trailer section; net/http looks no further than 4 KiB
)

func (f *framer) stepChunkEnd(b []byte) (int, Code) {
	for i := range min(len(b), 2) {
		if b[i] != "\r\n"[i] {
			return 0, ChunkMalformed
		}
	}
	if len(b) < 2 {
		return 0, ""
	}
	f.state = inChunkSize
	return 2, ""
}

// stepChunkSize reads "chunk-size [chunk-ext] CRLF" (RFC 9112, section 7.1): hexadecimal digits, no sign, no prefix,
// no space.
func (f *framer) stepChunkSize(b []byte) (int, Code) {
	end, code := f.nextLine(b)
	switch {
	case code != "":
		return 0, ChunkMalformed
	case end > maxChunkLine, end == 0 && len(b) > maxChunkLine:
		return 0, ChunkMalformed
	case end == 0:
		return 0, ""
	}
	line := b[:end-2]
	n, digits := int64(0), 0
	for digits < len(line) && isHex(line[digits]) {
		value, _ := hexDigit(line[digits])
		n = n<<4 | int64(value)
		digits++
	}
	if digits == 0 || digits > 15 {
		return 0, ChunkMalformed
	}
	if ext := line[digits:]; len(ext) > 0 {
		f.extensions += len(ext)
		if ext[0] != ';' || f.extensions > maxExtensions || !isValue(ext) {
			return 0, ChunkMalformed
		}
	}
	f.state, f.data, f.chunked = inData, n, true
	if n == 0 {
		f.state = inTrailer
	}
	return end, ""
}

func (f *framer) stepTrailer(b []byte) (int, Code) {
	end, code := f.nextLine(b)
	switch {
	case code != "":
		return 0, TrailerMalformed
	case f.trailer+end > maxTrailer, end == 0 && f.trailer+len(b) > maxTrailer:
		return 0, TrailerMalformed
	case end == 0:
		return 0, ""
	}
	f.trailer += end
	line := b[:end-2]
	if len(line) == 0 {
		f.state = inHead
		return end, ""
	}
	if _, _, code := splitField(line); code != "" {
		return 0, TrailerMalformed
	}
	return end, ""
}
