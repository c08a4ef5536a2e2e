package disk

import (
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
)

func TestFigures(t *testing.T) {
	l := Load{"rr", 4, 4096, 1000}
	s, err := figuresOf(l, "demo: ok blkbench qd=4 bs=4096 op=random-read count=1000 us=500000 iops=2000")
	if err != nil || s.iops != 2000 || math.Abs(s.mibs-7.8125) > 1e-9 || s.latency != 2000 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "count=1000", "us=0 count=1000", "us=5 count=999", "us=x count=1000"} {
		if _, err := figuresOf(l, bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if got := l.mode(); got != "blkbench=4,4096,rr,1000,lax" {
		t.Error(got)
	}
}

// fake is a subject that prints what a guest would.
func fake(name, says string, status int) Subject {
	return Subject{Name: name, status: status, argv: func(_, _, mode string) []string {
		return []string{"/bin/sh", "-c", says, "sh", mode}
	}}
}

func TestMeasure(t *testing.T) {
	var set figures.Set
	loads := []Load{{"r", 1, sequential, 100}, {"rr", 2, random, 100}, {"rr", 8, random, 100}}
	failed := Measure(t.Context(), &set, []Subject{
		fake(Ours, `echo "demo: ok blkbench count=100 us=1000"`, 0), fake(QEMU, `echo "demo: ok blkbench count=100 us=2000"; exit 1`, 1), fake("broken", "echo no", 0),
	}, loads, 3, "k", "d", io.Discard, nil)
	if failed != 0 || len(set.Figures) != 6 {
		t.Fatalf("%d failed, %d figures", failed, len(set.Figures))
	}
	f := set.Figure("disk/random-read-qd8-iops")
	if f == nil || f.Of(Ours).Summary.Median != 100_000 || f.Of(Ours).Ratios[QEMU].Value != 2 || f.Of("broken").Failed != 4 {
		t.Errorf("%+v", f)
	}
	if len(set.Curves) != 1 || len(set.Curves[0].Lines[0].Points) != 2 {
		t.Errorf("%+v", set.Curves)
	}
	if failed := Measure(t.Context(), &set, []Subject{fake(Ours, "echo no; exit 3", 0)}, loads[:1], 1, "k", "d", io.Discard, nil); failed != 2 {
		t.Errorf("%d runs of ours failed, want 2", failed)
	}
}

func TestImage(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk.img")
	if err := Image(name); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(name); err != nil || st.Size() != imageSize {
		t.Error(st, err)
	}
	if got := strings.Join(mustOurs(t).argv("k", "a,b", "m"), " "); !strings.Contains(got, "-disk a,,b") {
		t.Error(got)
	}
}

func mustOurs(t *testing.T) Subject {
	t.Helper()
	s, absent := Subjects("smolvmm", false)
	if len(s) != 1 || absent != nil {
		t.Fatal(s, absent)
	}
	return s[0]
}
