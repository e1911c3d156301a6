package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const presetNode = "node"

// basePaths is what every program that speaks to a network needs: names, certificates, time, and the devices that
// hold no data. All of it may be missing.
func basePaths() []wantedPath {
	var list []wantedPath
	for _, path := range []string{
		"/etc/resolv.conf", "/run/systemd/resolve", // the former is often a link into the latter, which is rewritten by rename
		"/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols",
		"/etc/passwd", "/etc/group", // names of users; there has been no secret in them for decades
		"/etc/localtime", "/etc/timezone", "/usr/share/zoneinfo",
		"/etc/ssl/openssl.cnf", "/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted", "/etc/ssl/cert.pem",
		"/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
		"/dev/urandom", "/dev/random",
		"/sys/devices/system/cpu", // how many threads to start
	} {
		list = append(list, wantedPath{path: path, access: accessRead, optional: true, from: "base"})
	}
	for _, path := range []string{"/dev/null", "/dev/zero", "/dev/full"} {
		list = append(list, wantedPath{path: path, access: accessRead | accessWrite, optional: true, from: "base"})
	}
	return list
}

// nodePaths is what Node.js reads besides: its application, and how much memory and processor there is.
//
// /proc is opened as a whole. A rule on /proc/self would hold the entry of this one process, and none of the
// processes that it forks. What matters in there stays closed by Landlock's rule for tracing, which the kernel asks
// for another process's environ, mem, maps and fd; command lines of other processes can be read.
func nodePaths(args []string, dir string, program bool) ([]wantedPath, error) {
	list := []wantedPath{{path: "/proc", access: accessRead, optional: true, from: "preset node"}}
	for _, path := range controlGroupFiles() {
		list = append(list, wantedPath{path: path, access: accessRead, optional: true, from: "preset node"})
	}
	if !program {
		return list, nil
	}
	app, err := applicationFolder(args, dir)
	if err != nil {
		return nil, err
	}
	list = append(list, wantedPath{path: app, access: accessRead, from: "application folder"})
	// Node looks for packages in the node_modules of every folder above (a workspace keeps them at its root).
	for folder := filepath.Dir(app); ; folder = filepath.Dir(folder) {
		list = append(list, wantedPath{path: filepath.Join(folder, "node_modules"), access: accessRead, optional: true, from: "preset node"})
		if folder == "/" {
			return list, nil
		}
	}
}

// applicationFolder is the nearest folder with a package.json at or above the script, else the working directory.
func applicationFolder(args []string, dir string) (string, error) {
	script := nodeScript(args)
	start := dir
	if script != "" {
		if !filepath.IsAbs(script) {
			script = filepath.Join(dir, script)
		}
		real, err := realScript(script)
		if err != nil {
			return "", err
		}
		start = filepath.Dir(real)
	}
	for folder := filepath.Clean(start); ; folder = filepath.Dir(folder) {
		if st, err := os.Stat(filepath.Join(folder, "package.json")); err == nil && st.Mode().IsRegular() && folder != "/" {
			return folder, nil
		}
		if folder == "/" {
			break
		}
	}
	if filepath.Clean(dir) == "/" {
		return "", fmt.Errorf("preset node: no package.json at or above %s, and the working directory is /: the program would be let into everything; set the working directory (WORKDIR in a Dockerfile)", start)
	}
	return dir, nil
}

// realScript finds the script as node would: with its extension left out, or as a folder.
func realScript(script string) (string, error) {
	for _, candidate := range []string{script, script + ".js", script + ".mjs", script + ".cjs", script + ".json"} {
		if real, err := filepath.EvalSymlinks(candidate); err == nil {
			if st, err := os.Stat(real); err == nil && st.IsDir() {
				return filepath.Join(real, "index.js"), nil
			}
			return real, nil
		}
	}
	_, err := os.Stat(script)
	if perr := mayEnter(existing(filepath.Dir(script))); perr != nil {
		err = perr
	}
	return "", fmt.Errorf("preset node: the script: %w", err)
}

// existing is the nearest folder that is there.
func existing(folder string) string {
	for folder != "/" {
		if _, err := os.Stat(folder); !os.IsNotExist(err) {
			break
		}
		folder = filepath.Dir(folder)
	}
	return folder
}

// nodeScript is the first argument that is not an option of node's own, or empty (node -e ...).
func nodeScript(args []string) string {
	withValue := []string{"-r", "--require", "--import", "--loader", "--experimental-loader", "-C", "--conditions", "--env-file", "--title", "--icu-data-dir", "--openssl-config"}
	for i := 1; i < len(args); i++ {
		switch a := args[i]; {
		case a == "-e", a == "--eval", a == "-p", a == "--print", a == "-pe", a == "-":
			return ""
		case a == "--":
			if i+1 < len(args) {
				return args[i+1]
			}
			return ""
		case slices.Contains(withValue, a):
			i++
		case !strings.HasPrefix(a, "-"):
			return a
		}
	}
	return ""
}

// controlGroupFiles are what node sizes its heap by. File by file, because the folder of a version 1 hierarchy also
// holds release_agent.
func controlGroupFiles() []string {
	groups := map[string][]string{"": {"/"}, "memory": {"/"}, "cpu": {"/"}}
	self, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(self)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3) // cgroups(7): id:controllers:path
		if len(part) != 3 {
			continue
		}
		for _, controller := range strings.Split(part[1], ",") {
			if _, ok := groups[controller]; ok {
				groups[controller] = append(groups[controller], part[2])
			}
		}
	}
	names := map[string][]string{
		"":       {"memory.max", "memory.high", "memory.current", "cpu.max"},
		"memory": {"memory.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.usage_in_bytes"},
		"cpu":    {"cpu.cfs_quota_us", "cpu.cfs_period_us"},
	}
	var list []string
	for controller, paths := range groups {
		for _, path := range paths {
			for _, name := range names[controller] {
				list = append(list, filepath.Join("/sys/fs/cgroup", controller, path, name))
			}
		}
	}
	return list
}
