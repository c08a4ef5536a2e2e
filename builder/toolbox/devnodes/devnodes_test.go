package devnodes

import "testing"

// TestNumbers holds the numbers to what a NetBSD/amd64 kernel was seen to take, and
// what MAKEDEV makes there.
func TestNumbers(t *testing.T) {
	all := map[string]Node{}
	needed := 0
	for _, n := range All() {
		if _, twice := all[n.Name]; twice {
			t.Errorf("%s is there twice", n.Name)
		}
		all[n.Name] = n
		if n.Needed {
			needed++
		}
	}
	if needed != 6 {
		t.Errorf("%d nodes are needed", needed)
	}
	for _, want := range []Node{
		{"console", false, 0o600, 0, 0, true}, {"null", false, 0o666, 2, 2, true}, {"zero", false, 0o666, 2, 12, true},
		{"urandom", false, 0o644, 46, 1, true}, {"bpf", false, 0o600, 23, 0, false},
		{"ld0a", true, 0o640, 19, 0, false}, {"rld0d", false, 0o640, 69, 3, false},
		{"ld1a", true, 0o640, 19, 16, false}, {"rld1d", false, 0o640, 69, 19, false}, {"rld3e", false, 0o640, 69, 52, false},
		{"dk1", true, 0o640, 168, 1, false}, {"rdk3", false, 0o640, 168, 3, false},
	} {
		if got := all[want.Name]; got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}
