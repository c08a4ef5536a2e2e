package linux

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/bench/internal/agenttest"
	"github.com/smolvmm/smolvmm/bench/netbsd"
)

// TestAgent boots Debian's kernel by `smolvmm run` without a network that leads
// anywhere, and speaks with its agent over virtio-vsock: exec, cp, a terminal, stop.
func TestAgent(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: boots Linux")
	}
	if _, err := os.Stat(inLab + "/smolvmm"); err == nil && netbsd.InLab() {
		speak(t, inLab+"/smolvmm", inLab+"/vmlinux", inLab+"/initrd")
		return
	}
	dir := t.TempDir()
	lab, vmlinux, modules := parts(t, dir)
	programs := map[string]string{}
	for name, pkg := range map[string]string{"guest": "bench/linux/guest", "smolinit": "cmd/smolinit", "agentcheck": "bench/netbsd/agentcheck", "smolvmm": "cmd/smolvmm/smolvmm-full"} {
		programs[name] = filepath.Join(dir, name)
		need(t, netbsd.Program(t.Context(), programs[name], pkg))
	}
	initrd := filepath.Join(dir, "initrd")
	archive(t, initrd, map[string]string{
		"init": programs["guest"], "bin/reboot": programs["guest"], "bin/smolinit": programs["smolinit"], "bin/agentcheck": programs["agentcheck"],
	}, modules, "virtio_mmio", "vmw_vsock_virtio_transport", "qemu_fw_cfg")
	why := netbsd.KVM()
	if why == nil {
		speak(t, programs["smolvmm"], vmlinux, initrd)
		return
	}
	t.Logf("in the lab: %v", why)
	again(t, lab, []string{
		"-timeout", "280s", "-file", programs["smolvmm"] + ":" + inLab + "/smolvmm",
		"-file", vmlinux + ":" + inLab + "/vmlinux", "-file", initrd + ":" + inLab + "/initrd",
	})
}

func speak(t *testing.T, program, kernel, initrd string) {
	s := agenttest.Smolvmm{Program: program, Dir: t.TempDir()}
	s.Home(t)
	defer s.Run(t, nil, "rm", "-f", "m0")
	out, errs, st := s.Run(t, nil, "run", "-d", "--name", "m0", "--ready", "agent", "--ready-timeout", "150s", "-acpi", "-net", "none", "-vsock", "42,"+filepath.Join(s.Dir, "v"),
		"-kernel", kernel, "-initrd", initrd, "-m", "512",
		"-a", "console=ttyS0 root=none panic=-1 tsc=reliable mitigations=off cryptomgr.notests net.ifnames=0 guest=agent")
	console := func() string {
		out, _, _ := s.Run(t, nil, "logs", "m0")
		return strings.ReplaceAll(out, "\r", "")
	}
	if st != 0 || strings.TrimSpace(out) != "m0" {
		t.Fatalf("%q %q %d\n%s", out, errs, st, console())
	}
	s.Commands(t, "m0")
	s.Terminal(t, "m0")
	if _, errs, st := s.Run(t, nil, "stop", "-t", "60s", "m0"); st != 0 {
		t.Errorf("stop: %q %d", errs, st)
	}
	text := console()
	if !strings.Contains(text, "guest: ok asked to end by terminated") {
		t.Errorf("the guest's init was not asked:\n%s", text)
	}
	if strings.Contains(text, "guest: FAILED") {
		t.Errorf("the guest says\n%s", text)
	}
	// The guest resets its machine: there is no power that it could switch off.
	if out, _, st := s.Run(t, nil, "wait", "m0"); st != 120 || strings.TrimSpace(out) != "120" {
		t.Errorf("wait: %q %d", out, st)
	}
}
