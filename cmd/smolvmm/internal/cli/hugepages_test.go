package cli

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

// TestHugePages: guest RAM lies in reserved 2 MiB pages where there are enough,
// and is refused in clear words where there are not.
func TestHugePages(t *testing.T) {
	clitest.NeedKVM(t)
	const mib = 64
	if free := freeHugePages(t); free < mib/2 {
		r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-hugepages", "-m", strconv.Itoa(mib), "hello"))
		if r.Status != 2 || r.Out != "" || strings.Count(r.Err, "\n") != 1 {
			t.Errorf("with %d pages free: %+v", free, r)
		}
		clitest.MustContain(t, "the error", r.Err, "64 MiB", "huge pages", "raise vm.nr_hugepages")
		t.Skipf("NOT RUN: guest RAM in huge pages: %d are free (echo %d > /proc/sys/vm/nr_hugepages)", free, mib/2)
	}
	p := clitest.Start(t, "demo", "-v", "-trace", "-console", "none", "-hugepages", "-m", strconv.Itoa(mib), "touch=48,wait")
	p.Errs.Wait(t, `write 0x502 .* 03\n(?s:.*)write 0x3f8`) // the mode has begun, and printed
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", p.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, ram, _ := strings.Cut(string(smaps), "/memfd:")
	ram, _, _ = strings.Cut(ram, "VmFlags:")
	clitest.MustContain(t, "smaps of guest RAM", strings.Join(strings.Fields(ram), " "), "KernelPageSize: 2048 kB")
	var used int
	for line := range strings.Lines(ram) {
		if f := strings.Fields(line); len(f) == 3 && strings.HasSuffix(f[0], "_Hugetlb:") {
			n, _ := strconv.Atoi(f[1])
			used += n
		}
	}
	if used < 48<<10 || used > mib<<10 {
		t.Errorf("%d kB of guest RAM are in huge pages, the guest touched 48 MiB of %d", used, mib)
	}
	if err := p.Kill(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.Ended(128 + 15)
}

func freeHugePages(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
