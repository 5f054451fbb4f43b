# Commits to a Git repository while `git gc` packs it and `find` lists it, as a user and a timer do
# at the same time. tests/machine/programs.rs runs this and compares the files that remain.
set -eu
umask 022
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null HOME="$PWD"
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
git init -q -b main repository
cd repository
git config gc.auto 0
trap 'touch ../stop; wait' EXIT
# Tries a command up to 20 times: on every filesystem, Git fails now and then when `git gc` removes
# a folder that Git is about to use.
again() {
    tries=0
    until "$@" 2> ../missed; do
        tries=$((tries + 1))
        if [ $tries = 20 ]; then cat ../missed >&2; return 1; fi
    done
}
# `git gc` gives up when a commit moves a branch at the same moment. The loop then starts it again.
(while [ ! -e ../stop ]; do git gc --quiet 2> /dev/null || true; done) &
(while [ ! -e ../stop ]; do find . -size +1k > /dev/null 2>&1 || true; done) &
for i in $(seq 30); do
    mkdir -p "d$((i % 5))"
    seq "$i" $((i * 40)) > "d$((i % 5))/f$((i % 7))"
    echo "$i" >> log
    again git add -A
    export GIT_AUTHOR_DATE="2020-01-01T00:00:$i" GIT_COMMITTER_DATE="2020-01-01T00:00:$i"
    again git commit -q -m "commit $i"
    if [ $((i % 10)) = 0 ]; then git branch -q "b$i"; fi
done
touch ../stop
wait
git gc --quiet
git fsck --full --strict > ../fsck 2>&1
git rev-list --objects --all | cut -d ' ' -f 1 | sort > ../objects
git cat-file --batch < ../objects | sha256sum > ../contents
git status --porcelain > ../status
git clone -q . ../clone
rm -rf ../clone/.git .git ../stop ../missed
trap - EXIT
