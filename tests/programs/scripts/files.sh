umask 022
printf 'one\ntwo\nthree\n' > f; cp -p f g; ln f hard; ln -s f soft; mkdir d
stat -c '%n %s %h %F %A' f g hard soft; stat -c '%n %F %A' d
mv g d/; find . -type f | sort; readlink soft; readlink -f soft | xargs basename
chmod 4751 f; stat -c %a f; chmod u-s,o-rwx f; stat -c %a f
chown 12:34 f; stat -c %u:%g f
touch -d '2001-02-03 04:05:06.789 UTC' f; TZ=UTC stat -c %y f
truncate -s 1M sparse; stat -c %s sparse; dd if=/dev/urandom of=random bs=64k count=20 status=none
cp random copy; cmp random copy && echo same; sha256sum < random | cmp - <(sha256sum < copy) && echo sums
tar -cf a.tar d f hard soft; mkdir out; tar -xf a.tar -C out; diff -r d out/d && stat -c %h out/f
gzip -k random; zcat random.gz | cmp - random && echo gzip
sed -i s/two/2/ d/g; awk '{ print NR ": " $0 }' d/g; sort -r d/g | paste -sd,
split -b 300k random part.; cat part.* | cmp - random && echo split
mkfifo p; (echo through a fifo > p) & cat p; wait
flock f -c 'echo locked'; ls nothing 2>&1; rmdir d 2>&1; cat d 2>&1; mkdir d 2>&1
df . > /dev/null && du -sb d/g | cut -f1; install -m 600 f i; stat -c %a i
: > /dev/full 2>&1; echo x 2>&1 > /dev/full; echo "full $?"
rm -rf d out && ls
