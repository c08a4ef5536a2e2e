package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/images"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
	runimage "github.com/smolvmm/smolvmm/cmd/smolvmm/internal/run"
	"github.com/smolvmm/smolvmm/vmm"
)

const runHelp = `smolvmm run runs a machine with a name.

Usage: smolvmm run [flags] IMAGE [ARG]…
       smolvmm run [flags] -f FILE.conf [IMAGE] [ARG]…
       smolvmm run [flags] --kernel FILE [--disk FILE]… [-- COMMAND [ARG]…]

IMAGE is an image of the store, or a disk image's path. Its disk stays as it is:
changes go to an overlay that rm removes, unless --persist.

  -d, --detach         go to the background once the guest is ready
      --name NAME      the machine's name (default: a random one)
      --rm             remove the machine when it has ended
  -f, --service FILE   a service file: smolBSD's variables; flags win
      --persist        changes go to the image itself
  -v, --volume FILE[:FOLDER][:ro]   one more disk, mounted at the guest's folder
      --env-file FILE  lines K=V, as with -e
      --ready WHAT     mark[:N] (default), start, agent, console:REGEX, port:N
      --ready-timeout TIME   how long -d waits for that (default 60s)
      --verify KEY     run only an image that was signed with KEY
  -k, -m, -c, -a, -p, -e, -E, --secret, --disk, --net, --egress and every other
      flag of a boot: smolvmm help boot (here -v is not --verbose)

Without -d the console is here and the exit status the guest's. With -d the name
is printed, and the status is 0 once the guest is ready; if it fails before, its
end is told and the status is the guest's.

  smolvmm run -d --name web -p 8080:80 web      smolvmm logs -f web
  smolvmm run --rm -f etc/rescue.conf           smolvmm stop web
`

// runFlags are the flags of `smolvmm run`, as typed.
type runFlags struct {
	cli.BootFlags
	service, ready, verify string
	envFiles, volumes      []string
	readyTimeout           time.Duration
	detach, remove         bool
	persist                bool
	image                  string
	vars                   map[string]string // of the service file
}

func (r *runFlags) set() *pflag.FlagSet {
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.SortFlags = false
	f.SetInterspersed(false) // what stands behind the image is the guest's
	f.BoolVarP(&r.detach, "detach", "d", false, "go to the background once the guest is ready")
	f.BoolVar(&r.remove, "rm", false, "remove the machine when it has ended")
	f.StringVarP(&r.service, "service", "f", "", "service `FILE` with smolBSD's variables; flags win")
	f.BoolVar(&r.persist, "persist", false, "changes go to the image itself, not to an overlay")
	f.StringArrayVarP(&r.volumes, "volume", "v", nil, "one more disk, `FILE[:FOLDER][:ro]`; repeatable")
	f.StringArrayVar(&r.envFiles, "env-file", nil, "`FILE` with variables, lines K=V; repeatable")
	f.StringVar(&r.ready, "ready", "mark", "`WHAT` makes it ready: start, mark[:N], agent, console:REGEX or port:N")
	r.readyTimeout = time.Minute
	f.Var((*cli.Duration)(&r.readyTimeout), "ready-timeout", "`TIME` that -d waits for the guest to be ready")
	f.StringVar(&r.verify, "verify", "", "run only an image that was signed with `KEY`")
	r.Guest(f)
	r.Machine(f, cli.DefaultMemory, 0)
	r.API.Common(f)
	r.Verbosely(f, "")
	return f
}

// runCommand is `smolvmm run`.
func runCommand(args []string, s cli.Streams) (err error) {
	var r runFlags
	f := r.set()
	words, err := parseWords(f, args)
	if err != nil {
		return err
	}
	if r.Help {
		fmt.Fprint(s.Out, runHelp)
		return nil
	}
	if err := r.readService(s); err != nil {
		return err
	}
	if r.detach && parentOf(s) == nil {
		if f.Changed("console") && r.Console == "stdio" {
			return cli.Usagef("-console stdio: a machine in the background has no terminal; smolvmm logs shows what it prints")
		}
		return detach(args, s)
	}
	if r.detach && r.Console == "stdio" {
		r.Console = "none"
	}
	if err := checkAPI(&r.API); err != nil {
		return err
	}
	if err := logAsAsked(&r.BootFlags, s); err != nil {
		return err
	}
	ready, err := parseReady(r.ready)
	if err != nil {
		return err
	}
	argv, err := r.resolve(f, words, s)
	if err != nil {
		return err
	}
	store, err := machines.Open(s.Env)
	if err != nil {
		return err
	}
	if r.Net.Audit == "" {
		r.Net.Audit = store.AuditLog()
	}
	claim, err := r.claim(store, argv)
	if err != nil {
		return err
	}
	if p := parentOf(s); p != nil {
		w := io.Writer(claim.Console.Stream(machines.Monitor))
		p.log.Store(&w)
	}
	// A machine that never ran leaves nothing.
	ran := false
	defer func() {
		if !ran {
			if derr := claim.Discard(); derr != nil && err == nil {
				err = derr
			}
		}
	}()
	r.Net.Name = claim.Spec.Name
	if slices.Equal(r.Net.Nets, []string{"none"}) {
		r.Net.HostLink = true // which reaches nothing, but the agent is reached by it
	}
	cfg, err := r.Config(argv, s)
	if err != nil {
		return err
	}
	r.overlays(cfg.Disks, claim)
	if err := r.complete(claim, cfg); err != nil {
		cli.Wipe(cfg.Items)
		return err
	}
	o := r.Options()
	n := &namedMachine{claim: claim, ready: ready, patience: r.readyTimeout, parent: parentOf(s), log: cfg.Log}
	n.onRun = func() { ran = true }
	r.API.Socket, r.API.ID = claim.Spec.Socket, claim.Spec.Name
	a, err := serveBoot(&r.BootFlags, &cfg, n, s)
	if err != nil {
		cli.Wipe(cfg.Items)
		return err
	}
	n.agent = a.agent
	o.Attached = []cli.Attachment{n, a}
	return cli.RunMachine(cfg, o, s)
}

// parseWords reads flags up to the first word that is none, and gives the words:
// the first is the image, or "" where there is only a command behind "--".
func parseWords(f *pflag.FlagSet, args []string) (words []string, err error) {
	f.Usage = func() {}
	if args, err = cli.OneDash(f, args); err != nil {
		return nil, err
	}
	if err := f.Parse(args); err != nil {
		return nil, cli.ParseError(f, err)
	}
	words = f.Args()
	if f.ArgsLenAtDash() == 0 {
		return append([]string{""}, words...), nil
	}
	if len(words) > 1 && words[1] == "--" {
		words = append(words[:1:1], words[2:]...)
	}
	return words, nil
}

// resolve finds what is to run: from the image, the service file and the flags,
// the latter winning. It gives the guest's command.
func (r *runFlags) resolve(f *pflag.FlagSet, words []string, s cli.Streams) (argv []string, err error) {
	if len(words) > 0 {
		r.image, argv = words[0], words[1:]
	}
	if r.service != "" {
		if err := r.fromService(f, s); err != nil {
			return nil, err
		}
	}
	var env []string
	for _, path := range r.envFiles {
		more, err := readEnvFile(path)
		if err != nil {
			return nil, err
		}
		env = append(env, more...)
	}
	r.Env = lastOfEach(append(env, r.Env...)) // -e wins
	switch {
	case r.image == "" && len(r.Disks) == 0 && r.Kernel == "":
		return nil, cli.Usagef("run: no image: name one, or give --kernel and --disk (smolvmm run --help)")
	case r.image == "":
		if r.verify != "" {
			return nil, cli.Usagef("-verify: files are not signed, images of the store are")
		}
		if len(r.Disks) > 0 {
			r.image = filepath.Base(strings.SplitN(r.Disks[0], ",", 2)[0])
		}
	case isPath(r.image):
		if err := cli.Readable("run", r.image); err != nil {
			return nil, err
		}
		if r.verify != "" {
			return nil, cli.Usagef("-verify: %s is a file; images of the store are signed", r.image)
		}
		r.Disks = append([]string{strings.ReplaceAll(r.image, ",", ",,")}, r.Disks...)
	default:
		if err := r.fromStore(f, s, argv); err != nil {
			return nil, err
		}
		argv = nil // they are in smolinit's document
	}
	return argv, r.addVolumes()
}

// isPath says whether an image is named by a disk image's path: one that looks like
// nothing else, or has a slash, as a registry's names have too, and is there.
func isPath(image string) bool {
	if strings.HasSuffix(image, ".img") {
		return true
	}
	for _, p := range []string{"/", "./", "../"} {
		if strings.HasPrefix(image, p) {
			return true
		}
	}
	st, err := os.Stat(image)
	return strings.ContainsRune(image, '/') && err == nil && !st.IsDir()
}

// findImage finds an image of the store, signed by --verify's key where one is
// given: a file, the key itself, or the name of one of `smolvmm key list`.
func (r *runFlags) findImage(s cli.Streams) (img runimage.Image, err error) {
	data, err := machines.DataFolder(s.Env)
	if err != nil {
		return img, cli.Usagef("%w", err)
	}
	dir := filepath.Join(data, "images")
	if r.verify == "" {
		img, err = runimage.Find(dir, r.image)
	} else {
		config, cerr := configFolder(s.Env)
		if cerr != nil {
			return img, cerr
		}
		key, kerr := images.PublicKey(filepath.Join(config, "keys"), r.verify)
		if kerr != nil {
			return img, cli.Usagef("-verify: %w", kerr)
		}
		img, err = runimage.Find(dir, r.image, key)
	}
	if err != nil {
		return img, cli.Usagef("run: %w", err)
	}
	return img, nil
}

// fromStore takes in what an image of the store says. Flags win, and -e goes over
// the image's variables in the guest.
func (r *runFlags) fromStore(f *pflag.FlagSet, s cli.Streams, argv []string) error {
	img, err := r.findImage(s)
	if err != nil {
		return err
	}
	if r.persist {
		return cli.Usagef("-persist: an image of the store stays as it is: run a copy of its disk")
	}
	init, err := img.Init(argv)
	if err != nil {
		return cli.Usagef("run: image %s: %w", r.image, err)
	}
	b, err := json.Marshal(init)
	if err == nil {
		err = json.Unmarshal(b, &r.Init)
	}
	if err != nil {
		return err
	}
	r.image = img.Name
	r.Disks = append([]string{strings.ReplaceAll(img.Disk, ",", ",,")}, r.Disks...)
	r.Append = img.Append(r.Append)
	if img.Memory != 0 && !f.Changed("memory") {
		r.Memory = strconv.FormatUint(img.Memory>>10, 10) + "K"
	}
	if img.CPUs != 0 && !f.Changed("cpus") {
		r.CPUs = img.CPUs
	}
	if len(r.Net.Publish) == 0 && !slices.Contains(r.Net.Nets, "none") {
		r.Net.Publish = img.Publish
	}
	if r.Kernel == "" {
		if r.Kernel = img.Kernel; r.Kernel == "" && img.Release != "" {
			k, err := kernels.Find("", img.Release)
			if err != nil {
				return cli.Usagef("run: image %s: %w", r.image, err)
			}
			r.Kernel = k.Path
		}
	}
	return nil
}

// lastOfEach keeps the last of several settings of one variable.
func lastOfEach(env []string) (out []string) {
	seen := map[string]int{}
	for _, e := range env {
		k, _, _ := strings.Cut(e, "=")
		if i, ok := seen[k]; ok {
			out[i] = e
			continue
		}
		seen[k] = len(out)
		out = append(out, e)
	}
	return out
}

// addVolumes reads -v FILE[:FOLDER][:ro].
func (r *runFlags) addVolumes() error {
	var mounts []map[string]any
	for _, v := range r.volumes {
		path, target, ro := v, "", false
		if p, ok := strings.CutSuffix(path, ":ro"); ok {
			path, ro = p, true
		}
		if i := strings.LastIndex(path, ":/"); i > 0 {
			path, target = path[:i], path[i+1:]
		}
		st, err := os.Stat(path)
		switch {
		case err != nil:
			return cli.Usagef("-volume %s: %w", path, cli.Plain(err))
		case st.IsDir():
			return cli.Usagef("-volume %s: a folder of the host cannot be shared: give a disk image (smolvmm help run)", path)
		}
		disk := strings.ReplaceAll(path, ",", ",,")
		if ro {
			disk += ",ro"
		}
		if target != "" {
			m := map[string]any{"type": "ffs", "source": fmt.Sprintf("/dev/ld%da", len(r.Disks)), "target": target}
			if ro {
				m["options"] = []string{"ro"}
			}
			mounts = append(mounts, m)
		}
		r.Disks = append(r.Disks, disk)
	}
	if mounts != nil {
		r.setInit("mounts", mounts)
	}
	return nil
}

func (r *runFlags) setInit(field string, value any) {
	if r.Init == nil {
		r.Init = map[string]any{}
	}
	r.Init[field] = value
}

// claim takes the machine's name.
func (r *runFlags) claim(store *machines.Store, argv []string) (*machines.Claim, error) {
	spec := machines.Spec{
		Image: r.image, Append: r.Append, CPUs: r.CPUs, Command: argv, Ready: r.ready, Remove: r.remove, Detach: r.detach,
		Created: time.Now().Round(0), Audit: r.Net.Audit,
	}
	if abs, err := filepath.Abs(spec.Audit); err == nil {
		spec.Audit = abs
	}
	spec.Name = r.Net.Name
	const tries = 100
	for try := range tries {
		if r.Net.Name == "" {
			spec.Name = machines.RandomName(try)
		}
		c, err := store.Create(spec)
		var used *machines.InUseError
		switch {
		case err == nil:
			return c, nil
		case errors.As(err, &used) && r.Net.Name == "":
			continue
		case used != nil || machines.CheckName(spec.Name) != nil:
			return nil, cli.Usagef("-name: %w", err)
		default:
			return nil, err
		}
	}
	return nil, cli.Usagef("no random name is free: give one with --name")
}

// overlays keeps images as they are. Volumes are there to be written to.
func (r *runFlags) overlays(disks []vmm.Disk, c *machines.Claim) {
	if r.persist {
		return
	}
	for i := range disks[:max(0, len(disks)-len(r.volumes))] {
		d := &disks[i]
		if d.ReadOnly || d.Overlay {
			continue
		}
		d.Overlay = true
		if !r.remove {
			d.OverlayPath = filepath.Join(c.Dir(), fmt.Sprintf("ld%d.overlay", i))
		}
	}
}

// complete writes down what the machine is, now that it is known.
func (r *runFlags) complete(c *machines.Claim, cfg vmm.Config) error {
	s := &c.Spec
	s.Kernel, s.Memory = cfg.Kernel.Path, cfg.Memory
	if abs, err := filepath.Abs(s.Kernel); err == nil {
		s.Kernel = abs
	}
	s.Disks, s.Ports = r.Disks, r.Net.Publish
	for _, e := range r.Env {
		k, _, _ := strings.Cut(e, "=")
		s.Env = append(s.Env, k)
	}
	for _, e := range r.Secrets {
		k, _, _ := strings.Cut(e, "=")
		s.Secrets = append(s.Secrets, k)
	}
	for _, p := range r.Plan.Sockets() {
		if abs, err := filepath.Abs(p); err == nil {
			p = abs
		}
		s.Sockets = append(s.Sockets, p)
	}
	return c.Update()
}

// maxEnvFile bounds a file of variables, in bytes.
const maxEnvFile = 1 << 20

// readEnvFile reads lines K=V, or K for this process's own; # begins a comment.
func readEnvFile(path string) (out []string, err error) {
	st, err := os.Stat(path)
	if err == nil && st.Size() > maxEnvFile {
		return nil, cli.Usagef("-env-file %s: more than %d bytes", path, maxEnvFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, cli.Usagef("-env-file %s: %w", path, cli.Plain(err))
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		// No line in an error: its value may be nobody's to see.
		if k, _, _ := strings.Cut(line, "="); k == "" || strings.ContainsAny(k, " \t\"'") {
			return nil, cli.Usagef("-env-file %s:%d: must be NAME=VALUE", path, n)
		}
		out = append(out, line)
	}
	return out, nil
}
