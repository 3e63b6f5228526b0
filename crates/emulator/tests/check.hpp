// Tests: sentences that a program prints as it checks them.
#pragma once

#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

inline int failures = 0;

inline void check(bool holds, const std::string& what) {
    if (holds) return;
    printf("    wrong: %s\n", what.c_str());
    failures++;
}

inline void check_close(double found, double expected, double tolerance, const std::string& what) {
    if (std::abs(found - expected) <= tolerance) return; // false for NaN
    check(false, what + ": expected " + std::to_string(expected) + ", found " + std::to_string(found));
}

inline void test(const char* sentence, const std::function<void()>& body) {
    int before = failures;
    body();
    printf("%s  %s\n", failures == before ? "ok   " : "WRONG", sentence);
    fflush(stdout);
}

// That `body` aborts, and says `message` on stderr.
inline void check_aborts(const std::string& message, const std::function<void()>& body) {
    int pipe_ends[2];
    check(pipe(pipe_ends) == 0, "no pipe");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(pipe_ends[1], 2);
        close(pipe_ends[0]);
        close(pipe_ends[1]);
        body();
        _exit(0);
    }
    close(pipe_ends[1]);
    std::string said;
    char bytes[256];
    for (ssize_t count; (count = read(pipe_ends[0], bytes, sizeof bytes)) > 0;) said.append(bytes, size_t(count));
    close(pipe_ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "did not abort: " + message);
    check(said.find(message) != std::string::npos, "expected \"" + message + "\", found \"" + said + "\"");
}
