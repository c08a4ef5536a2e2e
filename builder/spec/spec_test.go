package spec

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func sample() Image {
	return Image{
		Architecture: "amd64", OS: "netbsd", Created: "2026-01-02T03:04:05Z",
		Config: Config{
			Env: []string{"A=b", "PATH=/bin"}, Entrypoint: []string{"/bin/app"}, Cmd: []string{"-x", "ü"},
			User: "www:www", UID: 24, GID: 24, Groups: []uint32{24, 5}, WorkingDir: "/srv", StopSignal: "SIGTERM",
			ExposedPorts: []string{"80/tcp", "53/udp", "22"}, Volumes: []string{"/data"},
			Labels:      map[string]string{"smolbsd.service": "web", "b": "<&>"},
			Healthcheck: &Healthcheck{Test: []string{"CMD", "/bin/true"}, Interval: time.Second, Retries: 3},
		},
		Kernel: Kernel{Release: "10.99.12"}, Memory: 128 << 20, CPUs: 2, Publish: []string{"8080:80"},
		Disk: Disk{Digest: digest, Size: 512, Layout: LayoutFFS, Root: "ld0a"}, Tree: digest,
	}
}

func TestEncodeAndParse(t *testing.T) {
	img := sample()
	doc, err := img.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse(doc)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, img) {
		t.Errorf("came back as %+v", back)
	}
	again, err := back.Encode()
	if err != nil || string(again) != string(doc) {
		t.Errorf("the same image is other bytes: %s and %s, %v", doc, again, err)
	}
	// Nothing that is absent is written: an old reader would stumble over it.
	least := Image{Architecture: "amd64", OS: "netbsd", Disk: img.Disk}
	doc, err = least.Encode()
	want := `{"architecture":"amd64","os":"netbsd","config":{},"disk":{"digest":"` + digest + `","size":512,"layout":"ffs","root":"ld0a"}}`
	if err != nil || string(doc) != want {
		t.Errorf("%s, %v", doc, err)
	}
}

func TestParseRefuses(t *testing.T) {
	img := sample()
	doc, err := img.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for bad, want := range map[string]string{
		"":                                 "EOF",
		"null":                             "architecture",
		string(doc) + "{}":                 "follows",
		`{"surprise":1}`:                   "surprise",
		strings.Repeat(" ", MaxDocument+1): "at most",
		strings.Replace(string(doc), "2", `"`, 1): "invalid",
	} {
		if _, err := Parse([]byte(bad)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", bad, err, want)
		}
	}
}

func TestValidateNamesTheField(t *testing.T) {
	for want, spoil := range map[string]func(*Image){
		"architecture":                func(i *Image) { i.Architecture = "arm64" },
		"os ":                         func(i *Image) { i.OS = "linux" },
		"created":                     func(i *Image) { i.Created = "yesterday" },
		"memory":                      func(i *Image) { i.Memory = 1 << 50 },
		"memory: 12 ":                 func(i *Image) { i.Memory = 12 },
		"cpus":                        func(i *Image) { i.CPUs = -1 },
		"publish: 300":                func(i *Image) { i.Publish = make([]string, 300) },
		"publish: \"80\\x1b\"":        func(i *Image) { i.Publish = []string{"80\x1b"} },
		"tree":                        func(i *Image) { i.Tree = "sha512:00" },
		"kernel: the digest":          func(i *Image) { i.Kernel = Kernel{Digest: "sha256:" + strings.Repeat("G", 64), Size: 1} },
		"kernel: size":                func(i *Image) { i.Kernel = Kernel{Digest: digest} },
		"kernel: a digest and":        func(i *Image) { i.Kernel = Kernel{Digest: digest, Release: "1"} },
		"kernel: a size":              func(i *Image) { i.Kernel = Kernel{Size: 3} },
		"kernel: release \"../x\"":    func(i *Image) { i.Kernel = Kernel{Release: "../x"} },
		"kernel: release \"a/b\"":     func(i *Image) { i.Kernel = Kernel{Release: "a/b"} },
		"disk: the digest":            func(i *Image) { i.Disk.Digest = "" },
		"disk: size -1":               func(i *Image) { i.Disk.Size = -1 },
		"disk: size 513":              func(i *Image) { i.Disk.Size = 513 },
		"disk: size 4503599627370496": func(i *Image) { i.Disk.Size = 1 << 52 },
		"layout":                      func(i *Image) { i.Disk.Layout = "zfs" },
		"root \"ld0a -s\"":            func(i *Image) { i.Disk.Root = "ld0a -s" },
		"root \"\"":                   func(i *Image) { i.Disk.Root = "" },
		"root \"NAME=\"":              func(i *Image) { i.Disk.Root = "NAME=" },
		"root \"../sd0\"":             func(i *Image) { i.Disk.Root = "../sd0" },
		"config: env[0]":              func(i *Image) { i.Config.Env = []string{"1=2"} },
		"config: env[1]: a NUL":       func(i *Image) { i.Config.Env = []string{"A=", "B=\x00"} },
		"config: cmd[0]: not UTF-8":   func(i *Image) { i.Config.Cmd = []string{"\xff"} },
		"config: cmd: 5000":           func(i *Image) { i.Config.Cmd = make([]string, 5000) },
		"config: cmd[0]: 200000":      func(i *Image) { i.Config.Cmd = []string{strings.Repeat("x", 200000)} },
		"entrypoint[0] is empty":      func(i *Image) { i.Config.Entrypoint = []string{""} },
		"cmd[0] is empty":             func(i *Image) { i.Config.Entrypoint, i.Config.Cmd = nil, []string{""} },
		"user":                        func(i *Image) { i.Config.User = "a b" },
		"user: \"\\n\"":               func(i *Image) { i.Config.User = "\n" },
		"groups":                      func(i *Image) { i.Config.Groups = make([]uint32, 17) },
		"working_dir":                 func(i *Image) { i.Config.WorkingDir = "srv" },
		"stop_signal":                 func(i *Image) { i.Config.StopSignal = "SIG TERM" },
		"exposed_ports":               func(i *Image) { i.Config.ExposedPorts = []string{"0/tcp"} },
		"exposed_ports: \"080\"":      func(i *Image) { i.Config.ExposedPorts = []string{"080"} },
		"volumes":                     func(i *Image) { i.Config.Volumes = []string{"/a/../b"} },
		"labels: the name":            func(i *Image) { i.Config.Labels = map[string]string{"": "x"} },
		"labels: \"a\"":               func(i *Image) { i.Config.Labels = map[string]string{"a": "\x00"} },
		"healthcheck: test":           func(i *Image) { i.Config.Healthcheck = &Healthcheck{Test: []string{"CMD"}} },
		"healthcheck: the time":       func(i *Image) { i.Config.Healthcheck.Interval = -1 },
		"healthcheck: -1":             func(i *Image) { i.Config.Healthcheck.Retries = -1 },
	} {
		img := sample()
		spoil(&img)
		if err := img.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
	img := sample()
	if err := img.Validate(); err != nil {
		t.Error(err)
	}
	for _, root := range []string{"ld0a", "ld1", "dk0", "NAME=webroot", "NAME=2-x_y.z"} {
		if err := CheckRoot(root); err != nil {
			t.Error(err)
		}
	}
}

func TestToInit(t *testing.T) {
	c := sample().Config
	doc, err := c.ToInit(nil, map[string]string{"A": "over"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(doc)
	want := `{"argv":["/bin/app","-x","ü"],"env":{"A":"over","PATH":"/bin"},"cwd":"/srv","uid":24,"gid":24,"groups":[24,5]}`
	if err != nil || string(b) != want {
		t.Errorf("%s, %v", b, err)
	}
	if doc, _ = c.ToInit([]string{"y"}, nil); !reflect.DeepEqual(doc.Argv, []string{"/bin/app", "y"}) {
		t.Errorf("%q: arguments replace Cmd and follow Entrypoint", doc.Argv)
	}
	none := Config{}
	if doc, err = none.ToInit(nil, nil); err != nil || doc.Argv != nil {
		t.Errorf("%q, %v", doc.Argv, err)
	}
	none.Env = []string{"="}
	if _, err = none.ToInit(nil, nil); err == nil {
		t.Error("a bad configuration passed")
	}
}

func TestParseReference(t *testing.T) {
	for in, want := range map[string]Reference{
		"web":                                   {Name: "web", Tag: "latest"},
		"web:1.0":                               {Name: "web", Tag: "1.0"},
		"a/b__c/d-e--f.g:T_1":                   {Name: "a/b__c/d-e--f.g", Tag: "T_1"},
		"ghcr.io/netbsdfr/smolbsd/rescue-amd64": {Registry: "ghcr.io", Name: "netbsdfr/smolbsd/rescue-amd64", Tag: "latest"},
		"localhost/x":                           {Registry: "localhost", Name: "x", Tag: "latest"},
		"localhost:5000/x:y":                    {Registry: "localhost:5000", Name: "x", Tag: "y"},
		"[::1]:5000/x":                          {Registry: "[::1]:5000", Name: "x", Tag: "latest"},
		"[::1]/x":                               {Registry: "[::1]", Name: "x", Tag: "latest"},
		"web@" + digest:                         {Name: "web", Digest: digest},
		"h.example/web:t@" + digest:             {Registry: "h.example", Name: "web", Tag: "t", Digest: digest},
		"Host/x":                                {Registry: "Host", Name: "x", Tag: "latest"},
	} {
		got, err := ParseReference(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
			continue
		}
		if again, err := ParseReference(got.String()); err != nil || again != got {
			t.Errorf("%s written as %s is %+v, %v", in, got, again, err)
		}
	}
	for _, bad := range []string{
		"", ":", "/", "a//b", "Web", "web:", "web:-x", "web:" + strings.Repeat("x", 129), "web@", "web@sha256:12", "../etc/passwd", "a/../b", "a/.b",
		"-a", "a-", "a..b", "a___b", "a b", "http://x/y", "h:port/x", "h:123456/x", "[::1/x", "[]/x", "[::1]x/y", "-h.io/x", "h..io/x",
		strings.Repeat("a", 256), "web\x00", "web\n", "x@" + digest + "@" + digest, "sha256:" + strings.Repeat("a", 129),
	} {
		if got, err := ParseReference(bad); err == nil {
			t.Errorf("%q was taken as %+v", bad, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	img := sample()
	doc, err := img.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add([]byte(`{"architecture":"amd64","os":"netbsd","config":{"healthcheck":{"test":["NONE"]}},"disk":{"digest":"` + digest + `","size":512,"layout":"gpt","root":"NAME=x"}}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		img, err := Parse(doc)
		if err != nil {
			return
		}
		out, err := img.Encode()
		if err != nil {
			t.Fatalf("parsed, and cannot be written: %v", err)
		}
		back, err := Parse(out)
		if err != nil {
			t.Fatalf("written, and cannot be parsed: %v", err)
		}
		if again, err := back.Encode(); err != nil || string(again) != string(out) {
			t.Fatalf("%s became %s, %v", out, again, err)
		}
		if _, err := img.Config.ToInit(nil, nil); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"web", "localhost:5000/a/b:c@" + digest, "[::1]:1/x__y.z-1", "a_b:T"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(r.String())
		if err != nil || again != r {
			t.Fatalf("%q is %+v, and %q is %+v, %v", s, r, r.String(), again, err)
		}
		if strings.Contains(r.Name, "..") || strings.ContainsAny(r.String(), " \n\x00\\") {
			t.Fatalf("%q passed", s)
		}
	})
}
