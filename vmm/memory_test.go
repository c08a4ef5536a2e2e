package vmm_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
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
	cfg.Memory = 64 << 30
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
		if at, err := s.RAM.Seek(c.from, unix.SEEK_DATA); err != nil || at != c.want {
			t.Errorf("behind offset %#x the guest touched %#x first (%v), want %#x", c.from, at, err, c.want)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(s.RAM.Fd()), &st); err != nil || st.Blocks*512 > 8<<20 {
		t.Errorf("%d KiB of RAM are in use (%v)", st.Blocks/2, err)
	}
	if now := ownMemory(t); now > before+32<<20 {
		t.Errorf("the monitor grew from %d to %d KiB", before>>10, now>>10)
	}
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
	cfg.Memory, cfg.HugePages = 64<<20, true
	while(t, cfg, out, "ok touch", func(*vmm.Machine) {
		size, huge := ramPages(t)
		t.Logf("RAM in pages of %d KiB, %d KiB of them in use", size>>10, huge>>10)
		if size != 2<<20 || huge < 8<<20 || huge > 16<<20 {
			t.Errorf("pages of %d bytes, %d bytes in use: want 2 MiB, and a little over 8 MiB", size, huge)
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
	cfg.Memory, cfg.HugePages = 64<<20, true
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if exit, err := m.Run(context.Background()); err != nil || exit.End != vmm.EndExit || exit.Status != 0 {
		t.Errorf("%v, %v\n%s", exit, err, out)
	}
}

// ramPages gives the page size of the guest RAM mapping and the bytes in use as
// huge pages, from smaps.
func ramPages(t *testing.T) (size, huge uint64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	in := false
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) >= 6 {
			in = strings.Contains(line, "smolvmm-ram")
		}
		if !in || len(f) != 3 {
			continue
		}
		kib, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		switch f[0] {
		case "KernelPageSize:":
			size = kib << 10
		case "Shared_Hugetlb:", "Private_Hugetlb:":
			huge += kib << 10
		}
	}
	return size, huge
}
