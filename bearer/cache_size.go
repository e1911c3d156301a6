package bearer

// What an entry takes of memory beside what its token says, in bytes: itself, its proof, its places in map and ring, the caller.
const entryBytes = 900

// sizeOf is how much memory an entry for p takes, rather more than less.
func sizeOf(p *proof) int64 {
	size := entryBytes + len(p.algorithm) + len(p.keyID) + len(p.typ) + len(p.caller.Digest) + 16*len(p.caller.Scopes)
	return int64(size) + sizeOfValue(p.claims)
}

// sizeOfValue is the memory behind a value of JSON, as package jws makes it, beside the 16 bytes of the value itself.
func sizeOfValue(v any) int64 {
	switch v := v.(type) {
	case string:
		return 16 + sizeOfText(v)
	case int64, float64:
		return 8
	case []any:
		size := int64(24)
		for _, e := range v {
			size += 24 + sizeOfValue(e) // an array that has grown has places to spare
		}
		return size
	case map[string]any:
		places := int64(8) // in one group; then twice as many each time that seven in eight are taken
		for int64(len(v)) > 8 && int64(len(v))*8 > places*7 {
			places *= 2
		}
		size := 64 + 34*places
		for name, e := range v {
			size += sizeOfText(name) + sizeOfValue(e)
		}
		return size
	}
	return 0
}

func sizeOfText(s string) int64 { return int64(len(s)+7) &^ 7 }
