package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// processes are those of a program's group.
func processes(group int) ([]int, error) {
	all, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []int
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		// proc(5): the process group is the 5th field; the second may hold spaces and ends with a parenthesis.
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(fields) > 2 && fields[2] == strconv.Itoa(group) {
			list = append(list, pid)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("group %d has no process", group)
	}
	return list, nil
}

// cpuTimes is cpuTime of several processes.
func cpuTimes(pids []int) (total float64, err error) {
	for _, pid := range pids {
		t, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		total += t
	}
	return total, nil
}

// resident is what processes have in memory, in MiB; what they share counts for each.
func resident(pids []int) (float64, error) {
	pages := 0
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			return 0, err
		}
		fields := strings.Fields(string(b))
		if len(fields) < 2 {
			return 0, fmt.Errorf("/proc/%d/statm: %q", pid, b)
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			return 0, err
		}
		pages += n
	}
	return float64(pages) * float64(os.Getpagesize()) / (1 << 20), nil
}
