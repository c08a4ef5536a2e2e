package demo

import "strings"

// Kind is the first word of a line that the guest prints about itself.
type Kind string

// The kinds of line.
const (
	OK    Kind = "ok"    // a check passed
	Fail  Kind = "FAIL"  // a check failed
	Skip  Kind = "skip"  // a check could not be made
	Time  Kind = "time"  // how long a phase took: Value("us") in microseconds
	Count Kind = "count" // progress of the mode count
	Done  Kind = "done"  // the last line: Value("ok"), Value("fail"), Value("skip")
)

// Line is one line of the guest's report: "demo: <kind> <what> key=value …".
type Line struct {
	Kind Kind
	What string // what was checked; empty for Count and Done
	Text string // the rest
}

// ParseLine reads a line of the guest's console output. ok is false for a line
// that is not part of its report.
func ParseLine(s string) (l Line, ok bool) {
	s, ok = strings.CutPrefix(strings.TrimRight(s, "\r\n"), "demo: ")
	if !ok {
		return Line{}, false
	}
	kind, rest, _ := strings.Cut(s, " ")
	switch l.Kind = Kind(kind); l.Kind {
	case OK, Fail, Skip, Time:
		l.What, l.Text, _ = strings.Cut(rest, " ")
		return l, l.What != ""
	case Count, Done:
		l.Text = rest
		return l, true
	}
	return Line{}, false
}

// Value gives the value of the first key=value word of the line's text, and
// whether there is one.
func (l Line) Value(key string) (string, bool) {
	for word := range strings.FieldsSeq(l.Text) {
		if v, ok := strings.CutPrefix(word, key+"="); ok {
			return v, true
		}
	}
	return "", false
}
