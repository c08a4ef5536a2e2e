package audit

import (
	"encoding/json"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// cut bounds a field, at a rune's end.
func cut(s string) string {
	if len(s) <= maxField {
		return s
	}
	n := maxField
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}

// line is the event in JSON and a line feed. What is not printable ASCII is
// written \uXXXX: terminals act on more than JSON escapes (DEL, the controls of
// ISO 6429 above 0x80, marks that turn the direction of writing).
func line(e Event) []byte {
	b, err := json.Marshal(e)
	if err != nil {
		// A year past 9999 is all that can fail: the clock of a host gone wrong.
		b = fmt.Appendf(nil, `{"event":%q,"reason":"an event that has no JSON"}`, Lost)
	}
	out := make([]byte, 0, len(b)+1)
	for _, r := range string(b) {
		switch {
		case r < 0x7f:
			out = append(out, byte(r))
		case r <= 0xffff:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			hi, lo := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		}
	}
	return append(out, '\n')
}
