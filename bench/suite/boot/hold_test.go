package boot

import (
	"strings"
	"testing"
	"time"
)

func TestKnee(t *testing.T) {
	flat := make([]time.Duration, 60)
	for i := range flat {
		flat[i] = time.Duration(100 + i%7)
	}
	late, once := append([]time.Duration{}, flat...), append([]time.Duration{}, flat...)
	for i := 40; i < 60; i++ {
		late[i] *= 3
	}
	for i := 20; i < 40; i++ {
		once[i] *= 3
	}
	for name, c := range map[string]struct {
		v    []time.Duration
		want func(int) bool
	}{
		"none":           {flat, func(n int) bool { return n == 0 }},
		"late":           {late, func(n int) bool { return n >= 35 && n <= 42 }},
		"slow for once":  {once, func(n int) bool { return n == 0 }},
		"too few to say": {late[35:45], func(n int) bool { return n == 0 }},
	} {
		if got := Knee(c.v); !c.want(got) {
			t.Errorf("%s: %d", name, got)
		}
	}
}

// shell is a subject that runs a script.
func shell(name, script string) Subject {
	return Subject{name: name, argv: func(Guest) []string { return sh(script) }}
}

func TestCrowd(t *testing.T) {
	told := 0
	good := Subject{name: "good", argv: func(Guest) []string { return waiting(t) }}
	d, err := Crowd(t.Context(), good, "k", 64, 12, 2, func(_ string, done, total int) { told = 100*done + total })
	if err != nil || len(d.Starts) != 12 || len(d.Done) != 12 || d.Stopped != "" || told != 1212 {
		t.Fatalf("%+v, %v", d, err)
	}
	if last := d.Memory[len(d.Memory)-1]; len(d.Memory) != 5 || last.Machines != 12 || last.PSS <= d.Memory[0].PSS {
		t.Errorf("%+v", d.Memory)
	}
	d, err = Crowd(t.Context(), shell("bad", `echo no; echo why >&2`), "k", 64, 12, 2, nil)
	if err != nil || len(d.Starts) != 0 || !strings.Contains(d.Stopped, "no mark") || !strings.Contains(d.Stopped, "why") {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestKilobytes(t *testing.T) {
	if n, err := kilobytes([]byte("A: 1 kB\nPss:     12 kB\n"), "Pss:"); n != 12<<10 || err != nil {
		t.Error(n, err)
	}
	for _, bad := range []string{"", "Pss: x kB"} {
		if _, err := kilobytes([]byte(bad), "Pss:"); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
