mkdir -p tree/{a,b}/{x,y} && cd tree
touch a/x/{1..12}.txt b/y/file.c .hidden 'with space' a/x/Ü
LC_ALL=C; export LC_ALL
echo */ .h* a/x/1?.txt a/x/[2-4].txt
shopt -s globstar extglob nullglob dotglob
echo **/*.c !(a|b) none*
for f in *\ *; do echo "<$f>"; done
ls -A1 a/x | wc -l
rm -r a; ls -A
