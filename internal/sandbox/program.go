package sandbox

import (
	"bufio"
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// findProgram looks name up as execvp(3) would, in the program's own PATH and from its own working directory.
func findProgram(name, path, dir string) (string, error) {
	absolute := func(p string) string {
		if filepath.IsAbs(p) {
			return filepath.Clean(p)
		}
		return filepath.Join(dir, p)
	}
	if strings.Contains(name, "/") {
		file := absolute(name)
		st, err := os.Stat(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("program %s: %w", file, fs.ErrNotExist)
		case err != nil:
			return "", fmt.Errorf("program: %w", cmp.Or(mayEnter(filepath.Dir(file)), err))
		case !st.Mode().IsRegular():
			return "", fmt.Errorf("program %s is not a file", file)
		}
		return file, nil
	}
	for _, folder := range filepath.SplitList(path) {
		// An empty element means the working directory to a shell; here it means nothing.
		if folder == "" {
			continue
		}
		file := filepath.Join(absolute(folder), name)
		if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() && unix.Access(file, unix.X_OK) == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("program %q is in no folder of PATH=%s: %w", name, path, fs.ErrNotExist)
}

// programNeeds lists what execve(2) of the program needs: the program and its interpreters to execute, its libraries
// to read. The kernel asks for the right to execute where it opens a program or an interpreter; libraries are mapped,
// which Landlock does not mediate, and need reading only.
func programNeeds(path, pathVariable string) ([]wantedPath, error) {
	var list []wantedPath
	for depth := 0; ; depth++ {
		if depth > 4 { // the kernel follows no further either (ELOOP)
			return nil, fmt.Errorf("program %s: too many interpreters in a row", path)
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil, fmt.Errorf("program: %w", err)
		}
		if err := may(accessRead|accessExecute, real); err != nil {
			return nil, fmt.Errorf("program %s: %w", path, err)
		}
		list = append(list, wantedPath{path: real, access: accessRead | accessExecute, from: "program"})
		interpreter, argument, err := shebang(real)
		if err != nil {
			return nil, fmt.Errorf("program: %w", err)
		}
		if interpreter == "" {
			libraries, err := elfNeeds(real)
			return append(list, libraries...), err
		}
		if filepath.Base(interpreter) == "env" {
			needs, err := programNeeds(interpreter, pathVariable)
			if err != nil {
				return nil, err
			}
			list = append(list, needs...)
			fields := strings.Fields(strings.TrimPrefix(argument, "-S"))
			if len(fields) == 0 {
				return list, nil
			}
			if interpreter, err = findProgram(fields[0], pathVariable, "/"); err != nil {
				return nil, fmt.Errorf("interpreter of %s: %w", path, err)
			}
		}
		path = interpreter
	}
}

// shebang returns the interpreter of a script, or nothing if the file is not a script.
func shebang(path string) (interpreter, argument string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	head := make([]byte, 256) // BINPRM_BUF_SIZE
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", "", fmt.Errorf("read %s: %w", path, err)
	}
	line, found := strings.CutPrefix(string(head[:n]), "#!")
	if !found {
		return "", "", nil
	}
	line, _, _ = strings.Cut(line, "\n")
	interpreter, argument, _ = strings.Cut(strings.TrimSpace(line), " ")
	return interpreter, strings.TrimSpace(argument), nil
}

// libraryFolders are read as a whole where they exist: besides the libraries that a program declares there are those
// that it loads by name later (name resolution, character sets, OpenSSL's providers), and nothing secret lives there.
func libraryFolders() []string {
	return []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"}
}

// elfNeeds lists the dynamic loader and the folders of the libraries, following what each library needs in turn.
func elfNeeds(path string) ([]wantedPath, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("program %s is neither a script with #! nor an ELF program: %w", path, err)
	}
	defer f.Close()
	if f.Machine != elfMachine || f.Class != elf.ELFCLASS64 {
		return nil, fmt.Errorf("program %s is built for %v: the walls let only %v run", path, f.Machine, elfMachine)
	}
	var list []wantedPath
	for _, segment := range f.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(io.LimitReader(segment.Open(), unix.PathMax))
		if err != nil {
			return nil, fmt.Errorf("program %s: read its interpreter's name: %w", path, err)
		}
		loader := strings.TrimRight(string(name), "\x00")
		if _, err := os.Stat(loader); err != nil {
			return nil, fmt.Errorf("program %s: its dynamic loader is missing (an image without the C library that it was built for?): %w", path, err)
		}
		list = append(list, wantedPath{path: loader, access: accessRead | accessExecute, from: "program"})
	}
	if len(list) == 0 {
		return nil, nil // static
	}
	search := configuredFolders()
	folders := slices.Concat(libraryFolders(), search)
	seen := map[string]bool{}
	queue := []string{path}
	for len(queue) > 0 && len(seen) < 1000 {
		file := queue[0]
		queue = queue[1:]
		needed, own := declared(file)
		for _, lib := range needed {
			if seen[lib] {
				continue
			}
			seen[lib] = true
			for _, folder := range slices.Concat(own, search, libraryFolders()) {
				found := filepath.Join(folder, lib)
				if real, err := filepath.EvalSymlinks(found); err == nil {
					queue = append(queue, real)
					folders = append(folders, folder, filepath.Dir(real))
					break
				}
			}
		}
	}
	slices.Sort(folders)
	for _, folder := range slices.Compact(folders) {
		if !slices.ContainsFunc(libraryFolders(), func(l string) bool { return folder != l && beneath(folder, l) }) {
			list = append(list, wantedPath{path: folder, access: accessRead, optional: true, from: "library"})
		}
	}
	return append(list, wantedPath{path: "/etc/ld.so.cache", access: accessRead, optional: true, from: "library"}), nil
}

// declared returns the libraries that an ELF file needs and the folders where it says to look first. A file that
// cannot be read declares nothing: the dynamic loader will say so better than we could.
func declared(file string) (needed, folders []string) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, nil
	}
	defer f.Close()
	needed, _ = f.ImportedLibraries()
	origin := strings.NewReplacer("$ORIGIN", filepath.Dir(file), "${ORIGIN}", filepath.Dir(file))
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		values, _ := f.DynString(tag)
		for _, v := range values {
			for _, folder := range strings.Split(v, ":") {
				if folder = origin.Replace(folder); filepath.IsAbs(folder) && filepath.Clean(folder) != "/" {
					folders = append(folders, filepath.Clean(folder))
				}
			}
		}
	}
	return needed, folders
}

// configuredFolders reads ld.so.conf(5).
func configuredFolders() []string {
	files := []string{"/etc/ld.so.conf"}
	var folders []string
	for len(files) > 0 && len(folders) < 100 {
		file := files[0]
		files = files[1:]
		f, err := os.Open(file)
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			line, _, _ := strings.Cut(lines.Text(), "#")
			line = strings.TrimSpace(line)
			if pattern, ok := strings.CutPrefix(line, "include "); ok && file == "/etc/ld.so.conf" {
				more, _ := filepath.Glob(strings.TrimSpace(pattern))
				files = append(files, more...)
			} else if filepath.IsAbs(line) && filepath.Clean(line) != "/" {
				folders = append(folders, filepath.Clean(line))
			}
		}
		f.Close()
	}
	return folders
}
