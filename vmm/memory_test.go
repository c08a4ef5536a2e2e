package vmm_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// while runs a machine until look returns, which is called when the guest has
// printed a match of ready.
func while(t *testing.T, cfg vmm.Config, out *console, ready string, look func(*vmm.Machine)) {
	t.Helper()
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	g := launch(t, m, out)
	out.wait(t, ready, 0)
	look(m)
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	<-g.exit
}

// TestSixtyFourGiB: the largest guest finds all of its RAM, on both sides of the
// hole below 4 GiB, and costs the host what it touches. The guest writes a word
// to the end of each range of RAM, which must show in the file behind it there.
func TestSixtyFourGiB(t *testing.T) {
	cfg, out := demoConfig(t, "check")
	cfg.Memory, cfg.Pages = 64<<30, vmm.PagesShared
	cfg.CPUs = 2
	cfg.Disks = []vmm.Disk{{Path: scratch(t, 16<<20)}}
	before := ownMemory(t)
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	// A state of the machine before it runs has the file.
	if err := m.Pause(); err != nil {
		t.Fatal(err)
	}
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := m.Resume(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	exit, err := m.Run(ctx)
	if err != nil || exit.End != vmm.EndExit || exit.Status != 0 || strings.Contains(out.String(), "FAIL") {
		t.Fatalf("%v, %v\n%s", exit, err, out)
	}
	f := regexp.MustCompile(`ok map entries=\d+ ram_kib=(\d+)`).FindStringSubmatch(out.String())
	if f == nil {
		t.Fatalf("the guest told no memory map:\n%s", out)
	}
	// The first megabyte has the BIOS area and what the monitor keeps there.
	if kib, err := strconv.ParseUint(f[1], 10, 64); err != nil || kib<<10 > cfg.Memory || kib<<10 < cfg.Memory-1<<20 {
		t.Errorf("the guest has %s KiB of %d", f[1], cfg.Memory>>10)
	}
	const page = guestmem.PageSize
	for _, c := range []struct{ from, want int64 }{
		{guestmem.HoleStart - 64<<20, guestmem.HoleStart - page}, // the last page below the hole
		{guestmem.HoleStart, int64(cfg.Memory) - page},           // the last page of all
	} {
		if at, err := s.RAM().Seek(c.from, unix.SEEK_DATA); err != nil || at != c.want {
			t.Errorf("behind offset %#x the guest touched %#x first (%v), want %#x", c.from, at, err, c.want)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(s.RAM().Fd()), &st); err != nil || st.Blocks*512 > 8<<20 {
		t.Errorf("%d KiB of RAM are in use (%v)", st.Blocks/2, err)
	}
	if now := ownMemory(t); now > before+32<<20 {
		t.Errorf("the monitor grew from %d to %d KiB", before>>10, now>>10)
	}
}

// TestMemoryIsLazy: 4 GiB of any kind cost what the guest touches, and come in
// transparent huge pages where the host has them and they are wanted.
func TestMemoryIsLazy(t *testing.T) {
	enabled, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil {
		t.Logf("no transparent huge pages: %v", err)
	}
	has := strings.Contains(string(enabled), "[always]") || strings.Contains(string(enabled), "[madvise]")
	for name, pages := range map[string]vmm.Pages{"transparent": vmm.PagesTransparent, "small": vmm.PagesSmall, "shared": vmm.PagesShared} {
		for _, touch := range []uint64{0, 64} {
			mode, ready := "wait", `demo: `
			if touch > 0 {
				mode, ready = fmt.Sprintf("touch=%d,wait", touch), `demo: ok touch`
			}
			cfg, out := demoConfig(t, mode)
			cfg.Memory, cfg.Pages = 4<<30, pages
			while(t, cfg, out, ready, func(*vmm.Machine) {
				ram := guestRAM(t)
				t.Logf("4 GiB of %s pages, %d MiB touched: %d KiB resident, %d KiB of them huge", name, touch, ram.rss>>10, ram.transparent>>10)
				if ram.rss < touch<<20 || ram.rss > touch<<20+8<<20 {
					t.Errorf("%s: %d MiB touched, %d KiB resident", name, touch, ram.rss>>10)
				}
				switch {
				case pages == vmm.PagesTransparent && has && ram.transparent < touch<<19:
					t.Errorf("%d KiB are in huge pages, of %d MiB touched: %s", ram.transparent>>10, touch, enabled)
				case pages == vmm.PagesSmall && ram.transparent != 0:
					t.Errorf("%d KiB are in huge pages, which nobody wants", ram.transparent>>10)
				}
			})
		}
	}
}

// ramUse is what smaps tells of the mappings of guest RAM, in bytes.
type ramUse struct {
	mappings                  int
	rss, transparent, hugetlb uint64
	page                      uint64 // KernelPageSize of the last one
}

// guestRAM sums the guest RAM that this process has mapped: a memfd, or anonymous
// memory that is left out of core dumps ("dd"), as nothing else here is but the
// runtime's random state ("wf").
func guestRAM(t testing.TB) (sum ramUse) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	var one ramUse
	named, anonymous := false, false
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		var n uint64
		if len(f) == 3 && f[2] == "kB" {
			kib, err := strconv.ParseUint(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			n = kib << 10
		}
		switch f[0] {
		case "Rss:":
			one.rss = n
		case "AnonHugePages:":
			one.transparent = n
		case "KernelPageSize:":
			one.page = n
		case "Shared_Hugetlb:", "Private_Hugetlb:":
			one.hugetlb += n
		case "VmFlags:":
			if named || anonymous && slices.Contains(f, "dd") && !slices.Contains(f, "wf") {
				sum.mappings++
				sum.rss, sum.transparent, sum.hugetlb, sum.page = sum.rss+one.rss, sum.transparent+one.transparent, sum.hugetlb+one.hugetlb, one.page
			}
			one = ramUse{}
		default:
			if !strings.HasSuffix(f[0], ":") {
				named, anonymous = strings.Contains(line, "smolvmm-ram"), len(f) == 5
			}
		}
	}
	return sum
}

// TestHugePages: RAM comes in 2 MiB pages where that is asked for, as smaps
// tells. The pages are reserved for the test and given back.
func TestHugePages(t *testing.T) {
	const pages, knob = 48, "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
	had, err := os.ReadFile(knob)
	if err != nil {
		t.Skipf("NOT RUN: the host has no huge pages of 2 MiB: %v", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(had)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(knob, []byte(strconv.Itoa(n+pages)), 0o644); err != nil {
		t.Skipf("NOT RUN: huge pages cannot be reserved (root may): %v", err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(knob, had, 0o644); err != nil {
			t.Errorf("huge pages are left reserved: %v", err)
		}
	})
	free, err := os.ReadFile(filepath.Join(filepath.Dir(knob), "free_hugepages"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := strconv.Atoi(strings.TrimSpace(string(free))); err != nil || got < pages {
		t.Skipf("NOT RUN: the host's memory is too scattered for %d huge pages: %d are free", pages, got)
	}
	cfg, out := demoConfig(t, "touch=8,wait")
	cfg.Memory, cfg.Pages = 64<<20, vmm.PagesReserved
	while(t, cfg, out, "ok touch", func(*vmm.Machine) {
		ram := guestRAM(t)
		t.Logf("RAM in pages of %d KiB, %d KiB of them in use", ram.page>>10, ram.hugetlb>>10)
		if ram.page != 2<<20 || ram.hugetlb < 8<<20 || ram.hugetlb > 16<<20 {
			t.Errorf("pages of %d bytes, %d bytes in use: want 2 MiB, and a little over 8 MiB", ram.page, ram.hugetlb)
		}
	})
	// All are free again: nothing of the machine is left.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		free, err := os.ReadFile(filepath.Join(filepath.Dir(knob), "free_hugepages"))
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := strconv.Atoi(strings.TrimSpace(string(free))); got >= pages {
			break
		} else if time.Now().After(end) {
			t.Fatalf("%d huge pages are free, %d were", got, pages)
		}
	}
	cfg, out = demoConfig(t, "check")
	cfg.Memory, cfg.Pages = 64<<20, vmm.PagesReserved
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if exit, err := m.Run(context.Background()); err != nil || exit.End != vmm.EndExit || exit.Status != 0 {
		t.Errorf("%v, %v\n%s", exit, err, out)
	}
}
