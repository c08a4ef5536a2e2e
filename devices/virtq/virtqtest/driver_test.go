package virtqtest_test

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices/virtq"
	"github.com/smolvmm/smolvmm/devices/virtq/virtqtest"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
)

// again maps the same guest memory a second time, as a new machine would.
func again(t *testing.T, m *guestmem.Memory) *guestmem.Memory {
	t.Helper()
	fd, err := unix.FcntlInt(m.File().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := guestmem.FromFile(os.NewFile(uintptr(fd), "ram"), m.Size())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func TestDriver(t *testing.T) {
	for _, features := range []uint64{0, virtq.FeatureEventIdx, virtq.FeatureIndirectDesc, virtq.FeatureEventIdx | virtq.FeatureIndirectDesc} {
		t.Run(fmt.Sprintf("features %#x", features), func(t *testing.T) {
			dev := virtqtest.NewEcho(8, 16)
			d := virtqtest.NewDriver(t, dev, virtqtest.DriverOptions{Features: features})
			for i := range 100 {
				want := []byte(fmt.Sprintf("request %d", i))
				if got := d.Do(i%2, [][]byte{want[:3], want[3:]}, 5, 100); !bytes.Equal(got, want) {
					t.Fatalf("%q came back for %q", got, want)
				}
			}
			if features&virtq.FeatureIndirectDesc != 0 {
				for range 8 { // as many as there are descriptors
					if _, err := d.Rings[0].AddIndirect([][]byte{{1}, {2}, {3}}, []uint32{1, 2}); err != nil {
						t.Fatal(err)
					}
				}
				d.Kick(0)
				for _, u := range d.Wait(0, 8) {
					if !bytes.Equal(u.Joined(), []byte{1, 2, 3}) {
						t.Errorf("%v came back", u)
					}
				}
			}
			if d.Interrupts.Load() == 0 || d.Kicks.Load() == 0 {
				t.Errorf("%d kicks, %d interrupts", d.Kicks.Load(), d.Interrupts.Load())
			}
		})
	}
}

// TestMove pauses with requests posted that the device has not seen; they are
// served by its successor over another mapping.
func TestMove(t *testing.T) {
	d := virtqtest.NewDriver(t, virtqtest.NewEcho(8), virtqtest.DriverOptions{Features: virtq.FeatureEventIdx})
	d.Do(0, [][]byte{{1}}, 1)
	d.Pause()
	if _, err := d.Rings[0].Add([][]byte{{2}}, []uint32{1}); err != nil {
		t.Fatal(err)
	}
	d.Kick(0)
	next := virtqtest.NewEcho(8)
	if err := d.MoveTo(next, again(t, d.Mem)); err != nil {
		t.Fatal(err)
	}
	if u := d.Wait(0, 1); !bytes.Equal(u[0].Joined(), []byte{2}) {
		t.Errorf("%v came back", u)
	}
	d.Pause()
	d.Resume()
	d.Do(0, [][]byte{{3}}, 1)
	if next.Served() != 3 {
		t.Errorf("%d served, 3 sent", next.Served())
	}
}

func TestFaultIsTold(t *testing.T) {
	d := virtqtest.NewDriver(t, virtqtest.NewEcho(8), virtqtest.DriverOptions{})
	d.Rings[0].PushHead(99)
	d.Kick(0)
	if err := d.WaitFault(); err == nil || err.Error() != "virtqueue: chain 99: descriptor 99: index beyond a table of 8" {
		t.Errorf("fault %v", err)
	}
}

func TestArenaIsGivenBack(t *testing.T) {
	mem := virtqtest.NewMemory(t, 1<<20)
	r, err := virtqtest.NewRing(mem, 0x1000, 0x2000, virtqtest.Options{Size: 8, Indirect: true})
	if err != nil {
		t.Fatal(err)
	}
	q, err := virtq.New(mem, r.Cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		heads := 0
		for {
			if _, err := r.AddIndirect([][]byte{make([]byte, 1+i%300)}, []uint32{uint32(1 + i%1000)}); err == virtqtest.ErrFull {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			heads++
		}
		if heads == 0 {
			t.Fatalf("round %d: no room left", i)
		}
		r.Kick()
		for range heads {
			c, err := q.Pop()
			if err != nil || c == nil {
				t.Fatal(c, err)
			}
			q.Push(c.Head(), 0)
		}
		q.Publish()
		if u, err := r.Collect(); len(u) != heads || err != nil {
			t.Fatal(len(u), heads, err)
		}
	}
}
