package registry

import (
	"math"
	"strconv"
)

// maxPlainDepth bounds how deep plainJSON looks; what is deeper is left to YAML's reader.
const maxPlainDepth = 64

// maxPlainKey keeps keys below the length where YAML stops to take them for such (1024, YAML 1.2 section 7.4.2).
const maxPlainKey = 512

// plainJSON reads a document that is written in the JSON which programs write: ASCII, whole numbers, no white space but
// a line end after it, no key twice. ok is false for all else: such a document may mean something else in YAML, or
// be wrong, and a YAML reader must tell.
func plainJSON(data []byte) (document map[string]any, ok bool) {
	for len(data) > 0 && data[len(data)-1] == '\n' {
		data = data[:len(data)-1]
	}
	r := plainReader{rest: data}
	if len(data) == 0 || data[0] != '{' {
		return nil, false
	}
	document, _ = r.value(0).(map[string]any)
	return document, !r.failed && len(r.rest) == 0
}

type plainReader struct {
	rest   []byte
	failed bool
}

// take reads one byte if it is c.
func (r *plainReader) take(c byte) bool {
	if len(r.rest) == 0 || r.rest[0] != c {
		return false
	}
	r.rest = r.rest[1:]
	return true
}

// word reads a literal.
func (r *plainReader) word(text string, value any) any {
	if len(r.rest) < len(text) || string(r.rest[:len(text)]) != text {
		r.failed = true
		return nil
	}
	r.rest = r.rest[len(text):]
	return value
}

func (r *plainReader) value(depth int) any {
	if len(r.rest) == 0 || depth > maxPlainDepth {
		r.failed = true
		return nil
	}
	switch r.rest[0] {
	case '{':
		return r.object(depth)
	case '[':
		return r.list(depth)
	case '"':
		return r.text(math.MaxInt)
	case 't':
		return r.word("true", true)
	case 'f':
		return r.word("false", false)
	case 'n':
		return r.word("null", nil)
	}
	return r.number()
}

func (r *plainReader) object(depth int) any {
	object := make(map[string]any)
	r.rest = r.rest[1:]
	if r.take('}') {
		return object
	}
	for !r.failed {
		key := r.text(maxPlainKey)
		if _, twice := object[key]; twice || key == "<<" || !r.take(':') {
			r.failed = true
			break
		}
		object[key] = r.value(depth + 1)
		if r.take('}') {
			return object
		}
		r.failed = r.failed || !r.take(',')
	}
	return nil
}

func (r *plainReader) list(depth int) any {
	list := []any{}
	r.rest = r.rest[1:]
	if r.take(']') {
		return list
	}
	for !r.failed {
		list = append(list, r.value(depth+1))
		if r.take(']') {
			return list
		}
		r.failed = r.failed || !r.take(',')
	}
	return nil
}

// number reads a whole number that a float64 holds exactly.
func (r *plainReader) number() any {
	end := 0
	if r.rest[0] == '-' {
		end++
	}
	first := end
	for end < len(r.rest) && r.rest[end] >= '0' && r.rest[end] <= '9' {
		end++
	}
	digits := end - first
	if digits == 0 || digits > 15 || r.rest[first] == '0' && end > 1 {
		r.failed = true // also 007 and -0
		return nil
	}
	number, err := strconv.ParseInt(string(r.rest[:end]), 10, 64)
	r.failed = r.failed || err != nil
	r.rest = r.rest[end:]
	return number
}

// text reads a string of at most so many bytes.
func (r *plainReader) text(most int) string {
	if !r.take('"') {
		r.failed = true
		return ""
	}
	for i, c := range r.rest {
		switch {
		case c == '"':
			if i > most {
				r.failed = true
			}
			text := string(r.rest[:i])
			r.rest = r.rest[i+1:]
			return text
		case c == '\\':
			return r.escaped(most)
		case c < ' ' || c > '~':
			r.failed = true
			return ""
		}
	}
	r.failed = true
	return ""
}

// escaped reads a string with escapes, after its first quote.
func (r *plainReader) escaped(most int) string {
	var text []byte
	for i := 0; i < len(r.rest); i++ {
		c := r.rest[i]
		switch {
		case c == '"':
			if i > most {
				r.failed = true
			}
			r.rest = r.rest[i+1:]
			return string(text)
		case c < ' ' || c > '~':
			r.failed = true
			return ""
		case c != '\\':
			text = append(text, c)
			continue
		}
		if i++; i == len(r.rest) {
			break
		}
		switch r.rest[i] {
		case '"', '\\':
			text = append(text, r.rest[i])
		case 'n':
			text = append(text, '\n')
		case 't':
			text = append(text, '\t')
		case 'r':
			text = append(text, '\r')
		case 'u': // Go's encoder writes <, > and & that way
			code, err := strconv.ParseUint(string(r.rest[i+1:min(i+5, len(r.rest))]), 16, 16)
			if err != nil || i+5 > len(r.rest) || code < ' ' || code > '~' {
				r.failed = true
				return ""
			}
			text = append(text, byte(code))
			i += 4
		default:
			r.failed = true
			return ""
		}
	}
	r.failed = true
	return ""
}
