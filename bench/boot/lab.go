package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/smolvmm/smolvmm/bench/internal/machine"
	"github.com/smolvmm/smolvmm/bench/suite/boot"
)

// Where the lab's run finds things.
const (
	labDir    = "/bench"
	labMemory = 3072 // MiB: what is put in is there twice while the lab boots
)

// runInLab builds the lab's runner and this program, and runs this program in there with the same flags.
func runInLab(o *options, dir string, stdout, stderr *os.File) (int, error) {
	for name, pkg := range map[string]string{"lab": "github.com/smolvmm/smolvmm/bench/lab", "boot": "github.com/smolvmm/smolvmm/bench/boot"} {
		c := exec.Command("go", "build", "-o", filepath.Join(dir, name), pkg)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
		}
	}
	args := []string{"-timeout", o.timeout.String(), "-m", strconv.Itoa(labMemory), "-with", o.QEMU}
	inner := []string{
		"-bin", labDir, "-n", strconv.Itoa(o.Rounds), "-warm", strconv.Itoa(o.Warm), "-boots", strconv.Itoa(o.BootRounds),
		"-m", strconv.Itoa(o.MiB), "-only", o.Only, "-qemu", filepath.Base(o.QEMU), "-append", o.Cmdline, "-until", o.Until,
		"-check=" + strconv.FormatBool(o.check), "-quiet=" + strconv.FormatBool(o.Quiet),
	}
	for _, name := range []string{"smolvmm", "floor-go", "floor-c", "gokvm"} {
		if (boot.Programs{Dir: dir}).Has(name) {
			args = append(args, "-file", filepath.Join(dir, name)+":"+labDir+"/"+name)
		}
	}
	for _, name := range boot.Found() {
		if program, err := exec.LookPath(name); err == nil {
			args = append(args, "-with", program)
		}
	}
	for _, b := range o.extra {
		args = append(args, "-file", filepath.Join(dir, b.File())+":"+labDir+"/"+b.File())
		inner = append(inner, "-also", b.Name+"="+labDir+"/"+b.File())
	}
	inner = append(inner, "-kernel")
	if o.Kernel == "" {
		inner = append(inner, "none")
	} else {
		kernel := labDir + "/" + filepath.Base(filepath.Dir(o.Kernel)) + "/" + filepath.Base(o.Kernel)
		args = append(args, "-file", o.Kernel+":"+kernel, "-file", o.Disk+":"+labDir+"/root.img")
		inner = append(inner, kernel, "-disk", labDir+"/root.img")
	}
	if o.json != "" {
		args = append(args, "-out", "/tmp/boot.json:"+o.json)
		inner = append(inner, "-json", "/tmp/boot.json")
	}
	c := exec.Command(filepath.Join(dir, "lab"), append(append(args, filepath.Join(dir, "boot")), inner...)...)
	c.Stdout, c.Stderr = stdout, stderr
	// A run from an empty folder: the lab puts the working directory in.
	c.Dir = dir
	if err := os.MkdirAll(filepath.Join(dir, "empty"), 0o755); err == nil {
		c.Dir = filepath.Join(dir, "empty")
	}
	before, err := machine.ReadUsage()
	if err != nil {
		return 0, err
	}
	err = c.Run()
	if after, uerr := machine.ReadUsage(); uerr == nil {
		// Seen from inside, a lab that does not get the processor is only slow.
		if busy := machine.Others(before, after); busy > machine.NoisyOthers {
			fmt.Fprintf(stdout, "- around the lab, others used %.2f of a processor while this measured: the times are too long, and the ratios uncertain\n", busy)
		}
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil
	}
	return 0, err
}
