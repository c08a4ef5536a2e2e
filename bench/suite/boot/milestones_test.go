package boot

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
)

func TestMilestones(t *testing.T) {
	const text = "\x02[   1.0000000] NetBSD 10\n[   1.0000030] mainbus0 (root)\nplain\n[ no] x\n[1e99] y\n[   1.0863218] boot device: ld0\r\n[   1.25"
	out := []byte(text)
	at := func(s string) int { return strings.Index(text, s) }
	// The second line came in two pieces: its first byte counts.
	chunks := []chunk{{1, 1}, {at("(root)"), 20}, {at("plain"), 30}, {len(out), 40}}
	got := milestones(out, 1, chunks)
	want := []Milestone{{20, 1, "NetBSD 10"}, {20, 1.000003, "mainbus0 (root)"}, {40, 1.0863218, "boot device: ld0"}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	flood := []byte(strings.Repeat("[1.0] "+strings.Repeat("x", 1000)+"\n", 300))
	if got := milestones(flood, 0, []chunk{{len(flood), 5}}); len(got) != maxMilestones || len(got[0].Text) != maxMilestoneBytes {
		t.Errorf("%d of a flood", len(got))
	}
	if got := milestones(out, len(out)+3, chunks); got != nil {
		t.Errorf("%+v", got)
	}
}

func FuzzMilestones(f *testing.F) {
	f.Add([]byte("[   1.0000000] NetBSD 10\n[   1.0863218] boot device: ld0\n"), 3)
	f.Add([]byte("[1]\n[]\n[ 2.5] [3] x"), 1)
	f.Fuzz(func(t *testing.T, out []byte, cut int) {
		cut = min(max(cut, 0), len(out))
		last := time.Duration(0)
		for _, m := range milestones(out, 0, []chunk{{cut, 1}, {len(out), 2}}) {
			if m.At < last || m.At < 1 || m.At > 2 || len(m.Text) > maxMilestoneBytes || !(m.Clock >= 0) || math.IsInf(m.Clock, 0) {
				t.Fatalf("%+v", m)
			}
			last = m.At
		}
	})
}

// TestKernelParts says that the pieces make up the whole, whichever milestones there are.
func TestKernelParts(t *testing.T) {
	const ms = time.Millisecond
	whole := &Sample{Mark: 10 * ms, Console: 15 * ms, Until: 100 * ms, Milestones: []Milestone{
		{20 * ms, 1, "NetBSD 10"}, {30 * ms, 1.1, "mainbus0 (root)"}, {50 * ms, 1.2, "boot device: ld0"}, {60 * ms, 1.5, "root file system type: ffs"},
	}}
	less := *whole
	less.Milestones = whole.Milestones[:2]
	for _, c := range []struct {
		s    *Sample
		want []float64
	}{
		{whole, []float64{10, 5, 5, 10, 20, 10, 40}},
		{&less, []float64{10, 5, 5, 10, 70}},
		{&Sample{Mark: 10 * ms, Console: 15 * ms, Until: 100 * ms}, []float64{10, 5, 85}},
	} {
		r := &Report{order: []string{nameOurs}, Samples: map[string][]*Sample{whatFull + "/" + nameOurs: {c.s, c.s, c.s, c.s}}}
		var set figures.Set
		r.Bars(&set)
		r.Starts(&set)
		var got []float64
		for _, p := range set.Stacks[0].Bars[0].Parts {
			got = append(got, p.Value)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v, want %v", got, c.want)
		}
		clock := set.Figure("boot/kernel-clock")
		if (clock != nil) != (len(c.s.Milestones) == 4) || clock != nil && (!clock.Detail || math.Abs(clock.Of(nameOurs).Summary.Median-500) > 1e-6) {
			t.Errorf("the kernel's clock: %+v", clock)
		}
	}
}

// TestFirecrackerDisk says that each start has a disk of its own, beside the kernel.
func TestFirecrackerDisk(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "root.img")
	if err := os.WriteFile(disk, []byte("an image"), 0o400); err != nil {
		t.Fatal(err)
	}
	g := Guest{kernel: filepath.Join(dir, "k"), mib: 64, cmdline: "root=ld0a", disk: disk}
	for range 2 {
		firecrackerSubject("firecracker").command(g)
		copied, err := os.ReadFile(filepath.Join(dir, "k.img"))
		if err != nil || string(copied) != "an image" {
			t.Fatalf("%q, %v", copied, err)
		}
		b, err := os.ReadFile(g.configFile())
		if err != nil || !strings.Contains(string(b), `"path_on_host":"`+dir+`/k.img"`) || !strings.Contains(string(b), `"is_root_device":false`) {
			t.Fatalf("%s, %v", b, err)
		}
		if err := os.WriteFile(filepath.Join(dir, "k.img"), []byte("written by a guest"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
