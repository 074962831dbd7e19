export HOME=$PWD GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z'
git config --global user.name n; git config --global user.email e@example.org; git config --global init.defaultBranch main
git init -q one && cd one
for n in $(seq 50); do mkdir -p d$((n % 5)); echo $n > d$((n % 5))/$n; done
git add . && git commit -qm first && git rev-parse HEAD
git checkout -qb side && echo changed > d1/1 && git commit -qam second && git checkout -q main && git merge -q side && git log --oneline
cd .. && git clone -q one two && cd two && git status --short --branch && git gc -q && git fsck --full 2>&1 | grep -v ^notice
git grep -c changed; git diff HEAD~1 --stat
