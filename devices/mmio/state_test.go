package mmio_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/mmio"
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

// move brings a quiesced guest to a new transport over a second mapping.
func move(t *testing.T, g *guest, sizes ...uint16) (*guest, *virtqtest.Echo) {
	t.Helper()
	state, err := g.t.State()
	if err != nil {
		t.Fatal(err)
	}
	dev := virtqtest.NewEcho(sizes...)
	to := newGuest(t, dev, again(t, g.mem))
	if err := to.t.Restore(state); err != nil {
		t.Fatal(err)
	}
	back, err := to.t.State()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(state, back) {
		t.Fatalf("restored as\n%s\nsaved as\n%s", back, state)
	}
	for _, r := range g.rings {
		if err := r.Move(to.mem); err != nil {
			t.Fatal(err)
		}
	}
	to.rings = g.rings
	if err := g.t.Close(); err != nil {
		t.Fatal(err)
	}
	return to, dev
}

// TestMoveMidWork takes a machine away with requests posted and an interrupt
// unacknowledged, and goes on with it elsewhere.
func TestMoveMidWork(t *testing.T) {
	g, dev := echoGuest(t, 16, 8)
	g.start()
	g.t.Write(config, []byte("settings"))
	served := 0
	for hop := range 5 {
		for i := range 7 * hop {
			g.echo(i%2, fmt.Sprintf("hop %d, request %d", hop, i))
			served++
		}
		// An interrupt that nobody acknowledges before the move.
		g.settle()
		g.rings[0].EnableInterrupts()
		g.post(0, "unseen")
		<-g.pin
		served++
		if err := errors.Join(g.t.Quiesce(), g.t.Quiesce()); err != nil {
			t.Fatal(err)
		}
		g.post(0, "posted to a sleeper")
		g.post(1, "as is this")
		if n := dev.Served(); n != uint64(served) {
			t.Fatalf("%d served by a device at rest, %d before", n, served)
		}
		registers := []uint64{status, interruptStatus, configGeneration, queueReady, queueNumMax, config, config + 4}
		var before []uint32
		for _, off := range registers {
			before = append(before, g.r(off))
		}
		g, dev = move(t, g, 16, 8)
		for i, off := range registers {
			if got := g.r(off); got != before[i] {
				t.Errorf("register %#x reads %#x, %#x before", off, got, before[i])
			}
		}
		if g.raised.Load() != 0 {
			t.Error("a machine not yet resumed interrupts")
		}
		if err := errors.Join(g.t.Resume(), g.t.Resume()); err != nil {
			t.Fatal(err)
		}
		if g.raised.Load() == 0 {
			t.Error("the interrupt left unacknowledged is gone")
		}
		var texts []string
		for i, n := range []int{2, 1} {
			for got := 0; got < n; {
				for _, u := range g.wait(i) {
					texts = append(texts, string(u.Joined()))
					got++
				}
			}
		}
		served += 2
		if want := []string{"unseen", "posted to a sleeper", "as is this"}; !reflect.DeepEqual(texts, want) {
			t.Errorf("%q came back", texts)
		}
	}
	if dev.Served() != uint64(served) {
		t.Errorf("%d served, %d sent", dev.Served(), served)
	}
}

// TestPauseInPlace stops and goes on without a move.
func TestPauseInPlace(t *testing.T) {
	g, _ := echoGuest(t, 8)
	g.start()
	for i := range 50 {
		g.echo(0, fmt.Sprint("before ", i))
		if err := g.t.Quiesce(); err != nil {
			t.Fatal(err)
		}
		g.post(0, "meanwhile")
		if err := g.t.Resume(); err != nil {
			t.Fatal(err)
		}
		if us := g.wait(0); string(us[0].Joined()) != "meanwhile" {
			t.Fatalf("%v came back", us)
		}
	}
}

// TestStatesOfSetUp moves a device between any two steps of its initialisation.
func TestStatesOfSetUp(t *testing.T) {
	g, _ := echoGuest(t, 8)
	hop := func() {
		t.Helper()
		if err := g.t.Quiesce(); err != nil {
			t.Fatal(err)
		}
		g, _ = move(t, g, 8)
		if err := g.t.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	hop()
	g.w(status, acknowledge)
	hop()
	g.w(status, stateDriver)
	hop()
	g.w(driverFeaturesSel, 1)
	hop()
	g.w(driverFeatures, version1>>32)
	hop()
	g.w(status, stateFeatures)
	hop()
	g.layRings(0x10000)
	c := g.rings[0].Cfg
	for _, r := range []struct {
		off uint64
		v   uint32
	}{
		{queueSel, 0}, {queueNum, uint32(c.Size)}, {queueDescLow, uint32(c.Desc)}, {queueDriverLow, uint32(c.Avail)},
		{queueDeviceLow, uint32(c.Used)}, {queueReady, 1}, {status, stateRunning},
	} {
		g.w(r.off, r.v)
		hop()
	}
	if g.r(status) != stateRunning {
		t.Fatalf("status %#x: %v", g.r(status), g.t.Fault())
	}
	g.rings[0].Cfg.EventIdx = false
	g.echo(0, "after fourteen moves")
}

// TestStatesOfEarlyQueues does so with a driver that sets up its queue before it
// agrees on features.
func TestStatesOfEarlyQueues(t *testing.T) {
	g, _ := echoGuest(t, 8)
	g.upTo(stateDriver)
	g.layRings(0x10000)
	c := g.rings[0].Cfg
	for _, r := range []struct {
		off uint64
		v   uint32
	}{
		{queueSel, 0}, {queueNum, uint32(c.Size)}, {queueDescLow, uint32(c.Desc)}, {queueDriverLow, uint32(c.Avail)}, {queueDeviceLow, uint32(c.Used)},
		{queueReady, 1}, {driverFeaturesSel, 1}, {driverFeatures, version1 >> 32}, {status, stateFeatures}, {status, stateRunning},
	} {
		g.w(r.off, r.v)
		if err := g.t.Quiesce(); err != nil {
			t.Fatal(err)
		}
		if g.r(status) == stateDriver && g.r(queueReady) == 1 {
			state, err := g.t.State()
			if err != nil {
				t.Fatal(err)
			}
			state = bytes.Replace(state, []byte(`"status":3`), []byte(`"status":1`), 1)
			if err := newGuest(t, virtqtest.NewEcho(8), again(t, g.mem)).t.Restore(state); err == nil || !strings.Contains(err.Error(), "queue 0") {
				t.Errorf("a queue that is ready before its driver is there: %v", err)
			}
		}
		g, _ = move(t, g, 8)
		if err := g.t.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	if g.r(status) != stateRunning {
		t.Fatalf("status %#x: %v", g.r(status), g.t.Fault())
	}
	g.rings[0].Cfg.EventIdx = false
	g.echo(0, "after ten moves")
}

// TestWhilePaused: registers work on a device at rest, and nothing starts.
func TestWhilePaused(t *testing.T) {
	g, dev := recording(t)
	started := 0
	dev.activate = func(devices.Activation) error { started++; return nil }
	pause := func() {
		t.Helper()
		if err := g.t.Quiesce(); err != nil {
			t.Fatal(err)
		}
	}
	resume := func() {
		t.Helper()
		if err := g.t.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	pause()
	g.start()
	if started != 0 {
		t.Error("a device at rest was started")
	}
	resume()
	if started != 1 || dev.a.Queues[0].EnableKicks() {
		t.Errorf("started %d times", started)
	}
	if _, err := dev.a.Queues[0].Pop(); err != nil {
		t.Errorf("the ring is not attached: %v", err)
	}
	pause()
	g.w(status, 0)
	resume()
	if started != 1 || g.r(status) != 0 {
		t.Errorf("a device reset at rest was started: status %#x", g.r(status))
	}
	if _, err := g.t.State(); err == nil {
		t.Error("the state of a running device was taken")
	}
}

// TestFaultedState moves a broken device: it stays broken, and a reset mends it.
func TestFaultedState(t *testing.T) {
	g, _ := echoGuest(t, 8)
	g.start()
	g.echo(0, "well")
	g.settle()
	g.rings[0].PushHead(99)
	g.rings[0].Kick()
	g.w(queueNotify, 0)
	<-g.pin
	if err := g.t.Quiesce(); err != nil {
		t.Fatal(err)
	}
	g, _ = move(t, g, 8)
	if err := g.t.Resume(); err != nil {
		t.Fatal(err)
	}
	if g.r(status) != stateRunning|needsReset {
		t.Errorf("status %#x", g.r(status))
	}
	g.start()
	g.echo(0, "mended")
}

// goodState is that of a running device with two queues.
func goodState(t testing.TB) ([]byte, *guestmem.Memory) {
	g, _ := echoGuest(t, 8, 8)
	g.start()
	g.echo(0, "one")
	g.settle()
	if err := g.t.Quiesce(); err != nil {
		t.Fatal(err)
	}
	state, err := g.t.State()
	if err != nil {
		t.Fatal(err)
	}
	return state, g.mem
}

func TestBadStates(t *testing.T) {
	good, mem := goodState(t)
	for _, c := range []struct{ old, new, want string }{
		{"", "", ""},
		{`"id":63`, `"id":2`, "device type 2"},
		{`"status":15`, `"status":12`, "status 0xc"},
		{`"status":15`, `"status":271`, "status 0x10f"},
		{`"status":15`, `"status":3`, "queue 0: the ring is not what the registers say"},
		{`"isr":0`, `"isr":4`, "unknown bits"},
		{`"driver_features":5`, `"driver_features":9`, "features"},
		{`"num":8`, `"num":16`, "queue 0: the ring"},
		{`"next_avail":1`, `"next_avail":2`, "1 requests in flight"},
		{`"event_idx":true`, `"event_idx":false`, "queue 0: the ring"},
		{`"event_idx":true`, `"event_idx":true,"max_indirect":4096`, "queue 0: the ring"},
		{`"device":{`, `"device":5,"x":{`, "echo: state"},
		{`"queues":[`, `"queues":[{"num":0},`, "it has 3 queues"},
		{`}`, ``, "state:"},
	} {
		state := strings.Replace(string(good), c.old, c.new, 1)
		if c.old != "" && state == string(good) {
			t.Fatalf("no %s in %s", c.old, good)
		}
		g := newGuest(t, virtqtest.NewEcho(8, 8), mem)
		err := g.t.Restore([]byte(state))
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.new, err, c.want)
		}
	}
	// A ring out of RAM, in the registers and in the ring alike.
	var s map[string]any
	if err := json.Unmarshal(good, &s); err != nil {
		t.Fatal(err)
	}
	q := s["queues"].([]any)[1].(map[string]any)
	q["desc"], q["ring"].(map[string]any)["desc"] = 1<<40, 1<<40
	state, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, virtqtest.NewEcho(8, 8), mem)
	if err := g.t.Restore(state); !errors.Is(err, guestmem.ErrOutOfRange) {
		t.Errorf("a ring outside RAM: %v", err)
	}
	g = newGuest(t, virtqtest.NewEcho(8, 8), mem)
	g.upTo(acknowledge)
	if err := g.t.Restore(good); err == nil {
		t.Error("a state was put into a transport in use")
	}
}

// FuzzRestore feeds states; one that is taken must resume, answer and close.
func FuzzRestore(f *testing.F) {
	good, mem := goodState(f)
	f.Add(good)
	f.Add(bytes.Replace(good, []byte(`"status":15`), []byte(`"status":79`), 1))
	f.Add([]byte(`{"id":63,"queues":[{},{}],"device":{}}`))
	f.Fuzz(func(t *testing.T, state []byte) {
		tr, err := mmio.New(virtqtest.NewEcho(8, 8), mem, line(func(bool) {}))
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		if tr.Restore(state) != nil {
			return
		}
		first, err := tr.State()
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.Resume(); err != nil {
			t.Fatal(err)
		}
		g := &guest{tb: t, t: tr}
		g.r(status)
		g.w(status, 0)
		if g.r(status) != 0 {
			t.Fatalf("no reset out of %s", first)
		}
	})
}
