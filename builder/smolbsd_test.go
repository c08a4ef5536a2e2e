package builder

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/builder/tree"
)

type fakePackages struct{ asked []string }

func (f *fakePackages) Fetch(_ context.Context, _ string, names []string) ([]Layer, error) {
	f.asked = append(f.asked, names...)
	t := tree.New()
	if err := t.Put("usr/pkg/bin/pkgin", tree.NewFile(0o755, tree.Bytes("pkgin"))); err != nil {
		return nil, err
	}
	d, err := t.Digest()
	return []Layer{{"pkgin", d, func(context.Context, bool) (*tree.Tree, error) { return t, nil }}}, err
}

// TestSmolBSD: what a file of smolBSD's finds as its own builder has it.
func TestSmolBSD(t *testing.T) {
	b := newBench(t)
	pkgs := &fakePackages{}
	b.o.Packages = pkgs
	const text1 = `FROM base,etc
LABEL smolbsd.service=demo
ARG ARCH=$(uname -p)
ENV OWNER=demo
RUN pkgin up && echo "\$HOME of $OWNER"
USER $OWNER
RUN write /made 1
USER root
RUN write /etc/rc.local hostname demo
CMD login -f $OWNER
`
	// The machine's useradd makes the user.
	b.runner.hook = func(_ context.Context, s RunStep) error {
		if strings.HasPrefix(s.Argv[2], "useradd") {
			_, n, err := s.Root.Resolve("etc/passwd")
			if err != nil {
				return err
			}
			n.Content = tree.Bytes("root:*:0:0::/root:/bin/sh\ndemo:*:1001:100::/home/demo:/bin/sh\n")
		}
		return nil
	}
	res, root := b.build(text1)
	if got := b.runner.steps[0].Argv; !slices.Equal(got, []string{"/bin/sh", "-c", `ARCH=$(uname -p); export ARCH; exec '/bin/sh' '-c' "pkgin up && echo \"\$HOME of $OWNER\""`}) {
		t.Errorf("%q", got)
	}
	if got := b.runner.steps[1]; !slices.Equal(got.Argv, []string{"/bin/sh", "-c", `useradd -m "$1"`, "sh", "demo"}) || got.UID != 0 {
		t.Errorf("%q", got.Argv)
	}
	if got := b.runner.steps[2]; got.UID != 1001 {
		t.Errorf("%+v", got)
	}
	if !slices.Contains(pkgs.asked, "pkgin") || text(t, root, "usr/pkg/bin/pkgin") != "pkgin" {
		t.Errorf("packages: %q", pkgs.asked)
	}
	if !strings.Contains(text(t, root, "usr/pkg/etc/pkgin/repositories.conf"), "/amd64/11.0/All") || !strings.Contains(text(t, root, "etc/profile"), "/usr/pkg/bin") {
		t.Error("pkgin does not know where to look")
	}
	if c := res.Image.Config.Cmd; c[2] != "[ -f /etc/rc.local ] && . /etc/rc.local\nlogin -f $OWNER" {
		t.Errorf("%q", c)
	}
	if res.Name != "demo" {
		t.Error(res.Name)
	}
	// Docker's way on demand; there a user who is not there is an error.
	b.runner.hook = func(_ context.Context, s RunStep) error {
		if s.Argv[2] != `echo "\$HOME"` {
			return errors.New(s.Argv[2])
		}
		return nil
	}
	res, _ = b.build("FROM base,etc\nLABEL smolbsd.service=demo smolvmm.quoting=docker\nRUN echo \"\\$HOME\"\nCMD x\n")
	if c := res.Image.Config.Cmd; c[2] != "x" {
		t.Errorf("%q", c)
	}
	b.fails("FROM base,etc\nLABEL smolbsd.service=demo smolvmm.quoting=docker\nUSER demo\n", `there is no user "demo"`)
	b.o.Packages = nil
	b.fails("FROM base\nLABEL smolbsd.addpkgs=x\n", "this build has no packages")
}
