package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/smaps"
)

// Guest is what a monitor is asked to start.
type Guest struct {
	kernel string // an ELF file with a PVH note
	mib    int    // memory in MiB
	hold   bool   // the tiny guest holds instead of ending its machine
	// The rest is for a full kernel.
	cmdline string
	disk    string
}

// Name is the subject's, as the tables have it.
func (s Subject) Name() string { return s.name }

// configFile is where a monitor's configuration is, beside the kernel.
func (g Guest) configFile() string { return g.kernel + ".json" }

// command writes the configuration and the copy of the disk, where the monitor wants them, and gives the command line.
// What could not be written shows as the monitor's own error.
func (s Subject) command(g Guest) []string {
	if s.writes && g.disk != "" {
		image := g.kernel + ".img"
		_ = copyFile(image, g.disk, 0o600)
		g.disk = image
	}
	if s.config != nil {
		_ = replace(g.configFile(), s.config(g))
	}
	return s.argv(g)
}

// replace puts b at path in one step: a machine that starts at the same time may be reading what was there.
func replace(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close(), os.Rename(f.Name(), path))
}

// Subject is something to measure: a monitor, or the floor.
type Subject struct {
	name string
	argv func(Guest) []string
	// config gives the content of the file that argv names as g.configFile(), for a monitor that reads one.
	config func(Guest) []byte
	// ends says that the tiny guest's write to the exit port ends the process.
	ends bool
	// status is the process's exit status then.
	status int
	// writes says that it has no disk that forgets what a guest writes: every start gets a copy.
	writes bool
	// full says that it can start a full kernel with a virtio-mmio disk.
	full bool
	// version is the command line that prints the program's version and ends, for a program that has one.
	version []string
	// ram tells the guest's memory in smaps.
	ram func(mib int) func(smaps.Mapping) bool
	// must says that a failed start of it is this project's, and makes the whole run fail.
	must bool
}

// The names of the subjects that others are compared with.
const (
	nameFloorC  = "floor (C)"
	nameFloorGo = "floor (Go)"
	// nameFloorChips is the C floor with a PC's interrupt controllers and timer added. It is shown, but no floor to
	// compare with: it does more than the least.
	nameFloorChips = "floor (C) + irqchip + PIT"
	nameOurs       = "smolvmm"
	nameOpen       = "smolvmm -confine off"
	nameQEMU       = "QEMU microvm"
	nameGokvm      = "gokvm"
	nameFC         = "Firecracker"
	nameCH         = "Cloud Hypervisor"
	nameNet        = "smolvmm -net user"
)

// bySize finds guest memory by its size: shared anonymous memory and QEMU's have no name of their own.
func bySize(mib int) func(smaps.Mapping) bool { return smaps.Sized(uint64(mib) << 20) }

// floorSubject is a floor program. Its memory is what a VM itself costs.
func floorSubject(name, program string, words ...string) Subject {
	return Subject{
		name: name, ends: true, ram: bySize, must: true,
		argv: func(g Guest) []string {
			a := append([]string{program, fmt.Sprint(g.mib)}, words...)
			if g.hold {
				a = append(a, "hold")
			}
			return a
		},
	}
}

func smolvmmSubject(name, program string, flags ...string) Subject {
	var version []string
	if len(flags) == 0 {
		version = []string{program, "--version"}
	}
	return Subject{
		name: name, ends: true, full: true, must: true, version: version,
		ram: func(int) func(smaps.Mapping) bool { return smaps.Smolvmm },
		argv: func(g Guest) []string {
			a := append([]string{program, "-kernel", g.kernel, "-m", fmt.Sprint(g.mib)}, flags...)
			if !slices.Contains(flags, "-net") {
				a = append(a, "-net", "none")
			}
			if g.cmdline != "" {
				a = append(a, "-append", g.cmdline)
			}
			if g.disk != "" {
				a = append(a, "-disk", strings.ReplaceAll(g.disk, ",", ",,")+",overlay")
			}
			return a
		},
	}
}

// qemuSubject is QEMU's microvm with what a NetBSD guest needs and nothing else: no ACPI, no PIC, no option ROMs.
func qemuSubject(program string) Subject {
	return Subject{
		name: nameQEMU, ends: true, status: 1, // isa-debug-exit gives 2·value + 1
		full: true, ram: bySize, version: []string{program, "--version"},
		argv: func(g Guest) []string {
			a := []string{
				program, "-M", "microvm,accel=kvm,acpi=off,pic=off,pit=on,rtc=on,x-option-roms=off,auto-kernel-cmdline=on", "-cpu", "host,-arch-capabilities",
				"-m", fmt.Sprint(g.mib), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
				"-kernel", g.kernel,
			}
			if g.disk == "" {
				a = append(a, "-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=1", portExit))
			} else {
				a = append(a, "-global", "virtio-mmio.force-legacy=false", "-device", "virtio-blk-device,drive=d",
					"-drive", "if=none,id=d,format=raw,snapshot=on,file="+strings.ReplaceAll(g.disk, ",", ",,"))
			}
			if g.cmdline != "" {
				a = append(a, "-append", g.cmdline)
			}
			return a
		},
	}
}

// gokvmSubject is gokvm. It has neither virtio-mmio nor a way for the guest to end it.
func gokvmSubject(program string) Subject {
	return Subject{
		name: nameGokvm, ram: bySize,
		argv: func(g Guest) []string {
			return []string{program, "boot", "-k", g.kernel, "-m", fmt.Sprintf("%dM", g.mib), "-p", "x"}
		},
	}
}

// firecrackerSubject is Firecracker without its API's socket. It has no port by which a guest ends it.
func firecrackerSubject(program string) Subject {
	type m = map[string]any
	return Subject{
		name: nameFC, full: true, writes: true, ram: bySize, version: []string{program, "--version"},
		argv: func(g Guest) []string {
			return []string{program, "--no-api", "--level", "Error", "--config-file", g.configFile()}
		},
		config: func(g Guest) []byte {
			c := m{
				"boot-source":    m{"kernel_image_path": g.kernel, "boot_args": g.cmdline},
				"machine-config": m{"vcpu_count": 1, "mem_size_mib": g.mib}, "drives": []m{},
			}
			if g.disk != "" {
				// No root device: Firecracker would add a Linux root= of its own.
				c["drives"] = []m{{"drive_id": "d", "path_on_host": g.disk, "is_root_device": false, "is_read_only": false}}
			}
			b, _ := json.Marshal(c) // maps of strings and numbers have no way to fail
			return b
		},
	}
}

// cloudSubject is Cloud Hypervisor, with a serial port and no virtio console. Its disks are behind PCI, so it takes no
// part where a kernel needs a disk behind virtio-mmio.
func cloudSubject(program string) Subject {
	return Subject{
		name: nameCH, ram: bySize, version: []string{program, "--version"},
		argv: func(g Guest) []string {
			return []string{program, "--kernel", g.kernel, "--memory", fmt.Sprintf("size=%dM", g.mib), "--cpus", "boot=1", "--serial", "tty", "--console", "off"}
		},
	}
}

// peers are the monitors that -against may name, with their programs.
func peers() []peer {
	return []peer{
		{"qemu", "qemu-system-x86_64", nameQEMU, qemuSubject}, {"gokvm", "gokvm", nameGokvm, gokvmSubject},
		{"firecracker", "firecracker", nameFC, firecrackerSubject}, {"cloud-hypervisor", "cloud-hypervisor", nameCH, cloudSubject},
	}
}

// Found are the programs that a source tree does not build, and measures where they are on PATH.
func Found() []string { return []string{"firecracker", "cloud-hypervisor"} }

type peer struct {
	word, program, name string
	subject             func(program string) Subject
}

// Peers are the words that may be asked for.
func Peers() (out []string) {
	for _, p := range peers() {
		out = append(out, p.word)
	}
	return out
}

// Find are the subjects for a smolvmm that is there already: it, the floor in C, built into dir, and those of the peers
// named whose programs are on PATH.
func Find(dir, smolvmm string, against []string) (out []Subject, absent []string) {
	floor := filepath.Join(dir, "floor-c")
	if err := buildFloorC(floor); err == nil {
		out = append(out, floorSubject(nameFloorC, floor), floorSubject(nameFloorChips, floor, "irqchip"))
	} else {
		absent = append(absent, fmt.Sprintf("%s: needs gcc and a static C library: %s", nameFloorC, strings.Join(strings.Fields(err.Error()), " ")))
	}
	out = append(out, smolvmmSubject(nameOurs, smolvmm), smolvmmSubject(nameOpen, smolvmm, "-confine", "off"))
	for _, p := range peers() {
		if !slices.Contains(against, p.word) {
			continue
		}
		if program, err := exec.LookPath(p.program); err == nil {
			out = append(out, p.subject(program))
		} else {
			absent = append(absent, fmt.Sprintf("%s: no %s on PATH", p.name, p.program))
		}
	}
	return out, absent
}

// Monitors are those of some subjects that anybody would run: no floors, and nothing with its safety off.
func Monitors(subjects []Subject) []Subject {
	no := []string{nameFloorC, nameFloorChips, nameFloorGo, nameOpen}
	return slices.DeleteFunc(slices.Clone(subjects), func(s Subject) bool { return slices.Contains(no, s.name) })
}

// Programs are the files in the folder that build fills.
type Programs struct{ Dir string }

// Path is where one is.
func (p Programs) Path(name string) string { return filepath.Join(p.Dir, name) }

// Has tells whether one is there.
func (p Programs) Has(name string) bool {
	_, err := exec.LookPath(p.Path(name))
	return err == nil
}

// Subjects are all that can be measured with what is there, and what cannot, and why.
func (p Programs) Subjects(extra []Build, qemu string) (out []Subject, absent []string) {
	add := func(file string, s Subject) {
		if p.Has(file) {
			out = append(out, s)
		} else {
			absent = append(absent, s.name+": not built")
		}
	}
	add("floor-c", floorSubject(nameFloorC, p.Path("floor-c")))
	add("floor-c", floorSubject(nameFloorChips, p.Path("floor-c"), "irqchip"))
	add("floor-go", floorSubject(nameFloorGo, p.Path("floor-go")))
	add("smolvmm", smolvmmSubject(nameOurs, p.Path("smolvmm")))
	add("smolvmm", smolvmmSubject(nameOpen, p.Path("smolvmm"), "-confine", "off"))
	for _, b := range extra {
		add(b.File(), smolvmmSubject(b.Name, p.Path(b.File())))
	}
	if path, err := exec.LookPath(qemu); err == nil {
		out = append(out, qemuSubject(path))
	} else {
		absent = append(absent, fmt.Sprintf("%s: %v", nameQEMU, err))
	}
	add("gokvm", gokvmSubject(p.Path("gokvm")))
	for _, x := range peers() {
		if program, err := exec.LookPath(x.program); err == nil && slices.Contains(Found(), x.program) {
			out = append(out, x.subject(program))
		}
	}
	return out, absent
}

// Limits for one start.
const (
	tinyLimit = 10 * time.Second
	fullLimit = 2 * time.Minute
)
